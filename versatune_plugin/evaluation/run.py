"""`versatune evaluate`: benchmark by benchmark, written after each, going on with what is missing when run again."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from versatune_plugin.evaluation import harness
from versatune_plugin.evaluation.results import EvaluatedModel, Evaluation, HarnessRelease, Result
from versatune_plugin.evaluation.suite import Benchmark, Suite, read_suite
from versatune_plugin.evaluation.tables import format_benchmarks
from versatune_plugin.evaluation.target import Target, find_target

FILE = Path("versatune") / "evaluation.json"
NOT_YET = "not evaluated yet"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How benchmarks are run."""

    limit: int | None = None
    """Rows per task; None: all."""
    batch_size: str = "8"
    """Rows per forward pass, or "auto"."""
    device: str | None = None
    """Such as cuda:0; None: the accelerator if there is one, else the CPU."""
    chat_template: bool = False
    """Whether prompts are put into the model's chat template."""
    run_model_code: bool = False
    """Whether code that the model writes may be executed."""
    trust_remote_code: bool = False
    """Whether model code that comes with the weights may be executed."""
    refresh: bool = False
    """Whether benchmarks with a result are run again; the earlier one stays until there is a new one."""

    def __post_init__(self):
        if not re.fullmatch(r"auto|[1-9]\d*", self.batch_size):
            raise ValueError(f"--batch-size must be a number of rows or auto, got {self.batch_size!r}")


def evaluate(
    model: str,
    domains: Sequence[str] = (),
    *,
    tasks_file: Path | None = None,
    output: Path | None = None,
    base: str | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = logger.info,
) -> tuple[Path, Evaluation, list[str]]:
    """Run the benchmarks of domains on a model; results that are there and fit are kept.

    Args:
        model: See `find_target`.
        domains: Names; see `Suite.choose`. What the document holds of others stays as it is.
        tasks_file: The user's own benchmarks (see `read_suite`).
        output: Folder for versatune/evaluation.json; default: that of the model.
        base: The model of an adapter, where its own record does not lead there.
        options: How benchmarks are run.
        say: Gets a line for each benchmark.

    Returns:
        The file, what is in it once there is a result, and the benchmarks that failed, each as "domain / benchmark".

    Raises:
        ImportError: The harness is not installed.
        ValueError: A name is unknown, a file has mistakes, or earlier results do not go with these.
        OSError: The model or a file cannot be read or written.
    """
    options = options or Options()
    suite = read_suite(tasks_file)
    chosen = suite.choose(domains)
    target = find_target(model, base)
    folder = output or target.folder
    if folder is None:
        raise ValueError(f"{model} is on a hub: name a folder for the results with --output")
    file = folder / FILE
    manager = _manager(suite, chosen)
    the_model = cache(partial(_load_model, target, options, say))
    if target.fingerprint() is None:
        the_model()  # a hub model has a fingerprint once it is in the cache
    evaluation = _begin(file, target, options, say)
    pending, failed = _plan(evaluation, suite, chosen, options, say), []
    _write(evaluation, file)
    for domain, name, benchmark in pending:
        say(f"evaluating {domain} / {name}: {_some(benchmark.tasks)}")
        try:
            result = _run(manager, the_model, options, name, benchmark)
        except harness.LeftOutError as error:
            _leave_out(evaluation, domain, name, str(error), say)
            if isinstance(error, _FailedError):
                failed.append(f"{domain} / {name}")
        else:
            evaluation.add(domain, name, result, of=len(suite.domains[domain]))
        _write(evaluation, file)
    return file, evaluation, failed


def _begin(file: Path, target: Target, options: Options, say: Callable[[str], None]) -> Evaluation:
    """An evaluation with the results that are in the file, or without any where they are to be replaced.

    Raises:
        ValueError: The results there do not go with these and are not to be replaced.
    """
    evaluation = Evaluation(
        model=EvaluatedModel(**target.description()),
        step=target.step,
        limit=options.limit,
        chat_template=options.chat_template,
        harness=HarnessRelease(name=harness.NAME, version=harness.harness_version()),
    )
    if not file.exists():
        return evaluation
    earlier = Evaluation.read(file)
    differing = "; ".join(evaluation.differences(earlier))
    if not differing:
        return evaluation.model_copy(update={key: getattr(earlier, key) for key in ("domains", "left_out", "seconds")})
    if not options.refresh:
        raise ValueError(
            f"{file} holds results of another evaluation ({differing}): name another folder with --output, or "
            "replace them with --refresh"
        )
    say(f"the first new result replaces those in {file}, which do not go with it ({differing})")
    return evaluation


def _write(evaluation: Evaluation, file: Path) -> None:
    """Write the file once there is a result: until then it keeps what it has."""
    if evaluation.domains:
        evaluation.write(file)


def list_benchmarks(domains: Sequence[str] = (), tasks_file: Path | None = None) -> str:
    """What `evaluate` would run, as text; needs no model and no data.

    Raises:
        ImportError: The harness is not installed.
        ValueError: A name is unknown, or the file has mistakes.
    """
    suite = read_suite(tasks_file)
    chosen = suite.choose(domains)
    return format_benchmarks(suite, chosen, partial(harness.default_shots, _manager(suite, chosen)))


def _manager(suite: Suite, chosen: Sequence[str]):
    """The harness's index of tasks, which has those of the chosen domains."""
    manager = harness.task_manager(suite.include_path)
    tasks = {
        f"domains.{domain}.{name}.tasks": benchmark.tasks
        for domain in chosen
        for name, benchmark in suite.domains[domain].items()
    }
    harness.check_names(manager, tasks)
    return manager


def _load_model(target: Target, options: Options, say: Callable[[str], None]):
    say(f"loading {target.base}{f' with {target.adapter}' if target.adapter else ''}")
    how = {key: getattr(options, key) for key in ("device", "batch_size", "trust_remote_code", "chat_template")}
    return harness.load_model(target, **how)


def _plan(
    evaluation: Evaluation, suite: Suite, chosen: Sequence[str], options: Options, say: Callable[[str], None]
) -> list[tuple[str, str, Benchmark]]:
    """What is to be run: domain, name and benchmark; what is not is noted in the evaluation."""
    pending = []
    for domain in chosen:
        if not suite.domains[domain]:
            say(f"{domain}: has no benchmark (null took them away, or none was given)")
        for name in evaluation.keep(domain, suite.domains[domain]):
            say(f"{domain} / {name}: its definition has changed, so its earlier result is dropped")
        done = evaluation.tasks(domain)
        for name, benchmark in suite.domains[domain].items():
            if name in done and not options.refresh:
                continue
            reason = benchmark.missing
            if benchmark.runs_code and not options.run_model_code:
                reason = harness.CODE_FLAG
            if reason is None:
                pending.append((domain, name, benchmark))
            if name not in done:
                evaluation.leave_out(domain, name, reason or NOT_YET)
            elif reason is not None:
                say(f"{domain} / {name} keeps its earlier result: {reason}")
    return pending


def _leave_out(evaluation: Evaluation, domain: str, name: str, reason: str, say: Callable[[str], None]) -> None:
    """Note why a benchmark has no new result."""
    if name in evaluation.tasks(domain):
        say(f"{domain} / {name} keeps its earlier result: {reason}")
    else:
        say(f"{domain} / {name}: {reason}")
        evaluation.leave_out(domain, name, reason)


class _FailedError(harness.LeftOutError):
    """One benchmark cannot be evaluated; others can."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"failed: {reason}")


def _run(manager, the_model: Callable, options: Options, name: str, benchmark: Benchmark) -> Result:
    """The result of one benchmark; whatever goes wrong in it must not take the others with it."""
    with harness.code_allowed(options.run_model_code):
        tasks = _load(manager, benchmark)
        try:
            harness.prepare_tasks(tasks, benchmark, options.run_model_code)
        except ValueError as error:
            raise _FailedError(_line(error)) from error
        model = the_model()
        started = time.monotonic()
        how = {key: getattr(options, key) for key in ("limit", "chat_template", "run_model_code")}
        try:
            results = harness.run(manager, model, tasks, **how)
        except Exception as error:
            logger.warning("this benchmark failed within the harness:", exc_info=True)
            raise _FailedError(f"{type(error).__name__}: {_line(error)}{_hint(error)}") from error
    try:
        score = harness.score(results, list(tasks), benchmark)
    except ValueError as error:
        raise _FailedError(_line(error)) from error
    return Result(
        title=benchmark.title or name,
        definition=benchmark.definition,
        **score,
        harness_tasks=list(tasks),
        batch_size=options.batch_size,
        dtype=harness.dtype(model),
        trust_remote_code=options.trust_remote_code,
        seconds=round(time.monotonic() - started, 3),
    )


def _hint(error: Exception) -> str:
    text = str(error).lower()
    if "out of memory" in text:
        return "; lower --batch-size"
    if "larger than population" in text or "fewshot samples" in text:
        return "; a task has too few rows for the solved examples in a prompt: set a lower num_fewshot in --tasks FILE"
    return ""


def _load(manager, benchmark: Benchmark) -> dict:
    try:
        return harness.load_tasks(manager, benchmark)
    except OSError as error:
        hint = ""
        if isinstance(error, ConnectionError) or "on the Hub" in str(error):  # not so where files of the user's lack
            hint = (
                "; run it once where the hub can be reached (HF_HUB_OFFLINE unset), or put its data sets into the "
                "cache (HF_HOME)"
            )
        raise _FailedError(f"the data of {_some(benchmark.tasks)} cannot be read: {_line(error)}{hint}") from error
    except Exception as error:
        hint = "; `evaluate` is too old for `datasets` 4: pip install -U evaluate" if "use_auth" in str(error) else ""
        raise _FailedError(
            f"{_some(benchmark.tasks)} cannot be loaded: {type(error).__name__}: {_line(error)}{hint}"
        ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
