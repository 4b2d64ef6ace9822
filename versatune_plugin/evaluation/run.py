"""`versatune evaluate`: benchmark by benchmark, written after each, going on with what is missing when run again."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from versatune_plugin.documents import read_document, write_document
from versatune_plugin.drawing import aligned
from versatune_plugin.evaluation import harness
from versatune_plugin.evaluation.suite import Benchmark, Suite, read_suite
from versatune_plugin.evaluation.target import find_target

SCHEMA = "versatune/evaluation"
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
    nearest: bool = False
    """Whether what comes nearest to a missing benchmark is run, under its own name."""
    run_model_code: bool = False
    """Whether code that the model writes may be executed."""
    trust_remote_code: bool = False
    """Whether model code that comes with the weights may be executed."""
    refresh: bool = False
    """Whether benchmarks with a result are run again."""

    def __post_init__(self):
        if not re.fullmatch(r"auto|[1-9]\d*", self.batch_size):
            raise ValueError(f"--batch-size must be a number of rows or auto, got {self.batch_size!r}")


@dataclass
class Evaluation:
    """The content of evaluation.json while it grows."""

    file: Path
    model: dict
    step: int | None
    limit: int | None
    version: str
    results: dict[str, dict[str, dict]] = field(default_factory=dict)
    """By domain and benchmark."""
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why, by domain and benchmark."""

    def document(self) -> dict:
        """As it is written, without schema and version."""
        every = [task for tasks in self.results.values() for task in tasks.values()]
        return {
            "model": self.model,
            "step": self.step,
            "domains": {domain: _domain(tasks) for domain, tasks in self.results.items() if tasks},
            "left_out": [
                {"domain": domain, "task": name, "reason": reason} for (domain, name), reason in self.left_out.items()
            ],
            "limit": self.limit,
            "harness": {"name": harness.NAME, "version": self.version},
            "seconds": round(sum(task["seconds"] for task in every), 3),
        }

    def write(self) -> None:
        """Replace the file as a whole."""
        write_document(self.file, SCHEMA, self.document())

    def go_on(self, refresh: bool) -> None:
        """Take over the results in the file.

        Raises:
            ValueError: They are of another model, another limit or another release of the harness, and not to be
                forgotten; or the file is not such a document.
        """
        if not self.file.exists():
            return
        old = read_document(self.file, SCHEMA)
        new = self.document()
        facts = {"model": "fingerprint", "harness": "version"}
        differing = [
            f"{key} {fact} {old[key][fact]}, now {new[key][fact]}"
            for key, fact in facts.items()
            if old[key][fact] != new[key][fact] or new[key][fact] is None
        ]
        if old["limit"] != self.limit:
            differing.append(f"limit {old['limit']}, now {self.limit}")
        if differing and not refresh:
            raise ValueError(
                f"{self.file} holds results that do not go with these ({'; '.join(differing)}): name another folder "
                "with --output, or forget them with --refresh"
            )
        if not differing:
            self.results = {domain: dict(part["tasks"]) for domain, part in old["domains"].items()}
            self.left_out = {(one["domain"], one["task"]): one["reason"] for one in old["left_out"]}


def _domain(tasks: dict[str, dict]) -> dict:
    """The mean of a domain's benchmarks, each counting the same (arXiv 2411.11266, section 5.1)."""
    parts = list(tasks.values())
    mean, stderr = harness.weighted_mean(
        [part["score"] for part in parts], [part["stderr"] for part in parts], [1] * len(parts)
    )
    return {"score": mean, "stderr": stderr, "tasks": tasks}


def evaluate(
    model: str,
    domains: Sequence[str] = (),
    *,
    tasks_file: Path | None = None,
    output: Path | None = None,
    base: str | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = logger.info,
) -> tuple[Path, dict, list[str]]:
    """Run the benchmarks of domains on a model; results that are there and fit are kept.

    Args:
        model: See `find_target`.
        domains: Names; see `Suite.choose`.
        tasks_file: The user's own benchmarks (see `read_suite`).
        output: Folder for versatune/evaluation.json; default: that of the model.
        base: The model of an adapter, where its own record does not lead there.
        options: How benchmarks are run.
        say: Gets a line for each benchmark.

    Returns:
        The file, its document, and the benchmarks that failed, each as "domain / benchmark".

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
    manager = harness.task_manager(suite.include_path)
    wanted = {domain: suite.domains[domain] for domain in chosen}
    harness.check_names(manager, {f"domains.{d}.{n}.tasks": b.tasks for d, n, b in _each(wanted)})

    @cache
    def the_model():
        say(f"loading {target.base}{f' with {target.adapter}' if target.adapter else ''}")
        how = {key: getattr(options, key) for key in ("device", "batch_size", "trust_remote_code")}
        return harness.load_model(target, **how)

    if target.fingerprint() is None:
        the_model()  # a hub model has a fingerprint once it is in the cache
    evaluation = Evaluation(folder / FILE, target.description(), target.step, options.limit, harness.harness_version())
    evaluation.go_on(options.refresh)
    pending = _plan(evaluation, suite, wanted, options, say)
    if not pending:
        evaluation.write()
    failed = []
    for domain, name, benchmark in pending:
        say(f"evaluating {domain} / {name}: {_some(benchmark.tasks)}")
        try:
            result = _run(manager, the_model, benchmark, options)
        except harness.LeftOutError as reason:
            evaluation.left_out[domain, name] = str(reason)
        except _FailedError as error:
            failed.append(f"{domain} / {name}")
            say(f"{failed[-1]} failed: {error}")
            evaluation.left_out[domain, name] = f"failed: {error}"
        else:
            facts = {"title": benchmark.title or name, "definition": suite.definition(domain, name)}
            evaluation.results.setdefault(domain, {})[name] = facts | result
            del evaluation.left_out[domain, name]
        evaluation.write()
    return evaluation.file, evaluation.document(), failed


def _each(domains) -> Iterator[tuple[str, str, Benchmark]]:
    for domain, benchmarks in domains.items():
        for name, benchmark in benchmarks.items():
            yield domain, name, benchmark


def _plan(evaluation: Evaluation, suite: Suite, wanted, options: Options, say) -> list[tuple[str, str, Benchmark]]:
    """What is to be run; what is not is noted in the evaluation, what has a result stays there."""
    pending = []
    evaluation.left_out = {where: why for where, why in evaluation.left_out.items() if where[0] not in wanted}
    for domain, name, benchmark in _each(wanted):
        done = evaluation.results.get(domain, {})
        if options.refresh:
            done.pop(name, None)
        if name in done and done[name]["definition"] != suite.definition(domain, name):
            say(f"{domain} / {name}: its definition has changed, so its earlier result is dropped")
            del done[name]
        if name in done:
            done[name]["title"] = benchmark.title or name
            continue
        if benchmark.instead_of and not options.nearest:
            continue
        reason = benchmark.missing and benchmark.missing + _stand_ins(name, wanted[domain], options.nearest)
        if benchmark.runs_code and not options.run_model_code:
            reason = harness.CODE_FLAG
        evaluation.left_out[domain, name] = reason or NOT_YET
        if reason is None:
            pending.append((domain, name, benchmark))
    return pending


def _stand_ins(missing: str, benchmarks, nearest: bool) -> str:
    """What comes nearest to a missing benchmark."""
    titles = [benchmark.title or name for name, benchmark in benchmarks.items() if benchmark.instead_of == missing]
    return f"; {'run in its place' if nearest else '--nearest runs'}: {', '.join(titles)}" if titles else ""


class _FailedError(Exception):
    """One benchmark cannot be evaluated; others can."""


def _run(manager, the_model: Callable, benchmark: Benchmark, options: Options) -> dict:
    """The result of one benchmark; whatever goes wrong in it must not take the others with it."""
    with harness.code_allowed(options.run_model_code):
        tasks = _load(manager, benchmark)
        try:
            harness.prepare_tasks(tasks, benchmark, options.run_model_code)
        except ValueError as error:
            raise _FailedError(_line(error)) from error
        model = the_model()
        started = time.monotonic()
        try:
            results = harness.run(manager, model, tasks, limit=options.limit, run_model_code=options.run_model_code)
        except Exception as error:
            logger.warning("this benchmark failed within the harness:", exc_info=True)
            hint = "; lower --batch-size" if "out of memory" in str(error).lower() else ""
            raise _FailedError(f"{type(error).__name__}: {_line(error)}{hint}") from error
    try:
        result = harness.score(results, list(tasks), benchmark)
    except ValueError as error:
        raise _FailedError(_line(error)) from error
    return result | {"harness_tasks": list(tasks), "seconds": round(time.monotonic() - started, 3)}


def _load(manager, benchmark: Benchmark) -> dict:
    try:
        return harness.load_tasks(manager, benchmark)
    except OSError as error:
        raise _FailedError(
            f"the data of {_some(benchmark.tasks)} cannot be read: {_line(error)}; run it once where the hub can "
            "be reached (HF_HUB_OFFLINE unset), or put its data sets into the cache (HF_HOME)"
        ) from error
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


def format_evaluation(document: dict) -> str:
    """Domains and benchmarks as a table, what was left out, and what the results say of themselves."""
    table = [["", "metric", "shots", "rows", "score", "+-"]]
    for domain, part in document["domains"].items():
        table.append([domain, "mean", "", "", *_numbers(part)])
        for task in part["tasks"].values():
            shots = "mixed" if task["num_fewshot"] is None else str(task["num_fewshot"])
            table.append([f"  {task['title']}", task["metric"], shots, f"{task['num_samples']:,}", *_numbers(task)])
    lines = [aligned(table)] if len(table) > 1 else ["no benchmark was evaluated"]
    if document["limit"] is not None:
        lines.append(f"at most {document['limit']} rows per task: a trial, not a result to report")
    lines += [f"left out: {one['domain']} / {one['task']}: {one['reason']}" for one in document["left_out"]]
    return "\n".join(lines)


def _numbers(part: dict) -> list[str]:
    return [f"{part['score']:.3f}", "" if part["stderr"] is None else f"{part['stderr']:.3f}"]
