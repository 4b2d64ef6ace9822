"""What is asked of lm-evaluation-harness: its tasks by name, its model class, and the scores of one benchmark."""

import difflib
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from versatune_plugin.evaluation.suite import Benchmark
from versatune_plugin.evaluation.target import Target

NAME = "lm-evaluation-harness"
INSTALL = "pip install 'versatune_plugin[evaluate]'"
CODE_FLAG = "it executes code that the model writes: give --run-model-code, on a machine where that may do no harm"


class LeftOutError(Exception):
    """A benchmark that is not to be run as things are; its text is the reason."""


def task_manager(include_path: Path | None = None):
    """The harness's index of tasks, with those in a folder of the user's own.

    Raises:
        ImportError: The harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f"evaluation needs {NAME}: {INSTALL} ({error})") from error
    return TaskManager(include_path=None if include_path is None else str(include_path))


def harness_version() -> str:
    """Of the installed package."""
    return version("lm_eval")


def check_names(manager, tasks_by_key: Mapping[str, Sequence[str]]) -> None:
    """Whether the harness knows all tasks; needs no data and no model.

    Args:
        manager: See `task_manager`.
        tasks_by_key: Names of tasks, by where they are given.

    Raises:
        ValueError: Some are unknown; each is named with the nearest that there is.
    """
    known = dict.fromkeys(manager.all_tasks)
    unknown = [
        f"{key}: {NAME} {harness_version()} has no task {name!r}{_nearest_task(name, known)}"
        for key, names in tasks_by_key.items()
        for name in names
        if name not in known
    ]
    if unknown:
        raise ValueError("\n".join(unknown))


def _nearest_task(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; nor one of a similar name (for your own: include_path)"


def default_shots(manager, names: Sequence[str]) -> int | None:
    """Shots that the harness gives some tasks, as their YAML files say; None where they differ or are not there."""
    configs = [_config(manager, name) for name in names]
    shots = {None if config is None else config.get("num_fewshot") or 0 for config in configs}
    return shots.pop() if len(shots) == 1 else None


def _config(manager, name: str) -> Mapping | None:
    """What a task's YAML says, with what it includes; None of groups, tags and Python tasks."""
    entry = manager.task_index[name]
    if not isinstance(entry, dict):  # since 0.4.12
        return entry.cfg if entry.kind.name == "TASK" else None
    if entry["type"] != "task":
        return None
    from lm_eval.utils import load_yaml_config

    return load_yaml_config(entry["yaml_path"], mode="simple")  # "full" would import the task's functions


def load_tasks(manager, benchmark: Benchmark) -> dict:
    """The benchmark's tasks by name, those of groups and tags one by one, with their data.

    Raises:
        Exception: Whatever the harness or the data raise; an OSError where data cannot be read or reached.
    """
    from lm_eval.tasks import get_task_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of get_task_dict: what replaces it came with 0.4.12
        loaded = [get_task_dict([name], manager) for name in benchmark.tasks]
    return {name: task for tasks in loaded for name, task in _leaves(tasks)}


def prepare_tasks(tasks: Mapping, benchmark: Benchmark, run_model_code: bool = False) -> None:
    """See that the tasks can be scored as the benchmark says, and set its shots.

    Raises:
        LeftOutError: A task executes code, and that is not allowed.
        ValueError: A task has no such metric, or lower is better in it.
    """
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not run_model_code:
            raise LeftOutError(CODE_FLAG)
        _check_metric(name, task, benchmark.metric)
        if benchmark.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=benchmark.num_fewshot)


def _leaves(tasks: Mapping) -> Iterator[tuple]:
    for key, value in tasks.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


def _check_metric(name: str, task, metric: str) -> None:
    directions = task.higher_is_better()
    if metric in directions:
        upward = directions[metric]
    else:
        functions = task.config.process_results or any(callable(one["metric"]) for one in task.config.metric_list or [])
        if not functions:  # those may return metrics under names that are written nowhere
            raise ValueError(f"task {name!r} has no metric {metric!r}; it has: {', '.join(map(str, directions))}")
        upward = all(directions.values())
    if not upward:
        raise ValueError(
            f"task {name!r}: higher is not better in the metric {metric!r}, so it cannot enter a domain's mean; take "
            f"another of its metrics ({', '.join(map(str, directions))}), or set higher_is_better in its metric_list"
        )


def load_model(
    target: Target, *, device: str | None, batch_size: str, trust_remote_code: bool, chat_template: bool = False
):
    """The model as the harness's own class for transformers models, with the adapter applied.

    Raises:
        ValueError: The device is not there, or a chat template is asked for and the tokenizer has none.
        OSError: There is no such model.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = device or str(accelerator)
    model = HFLM(
        pretrained=target.base,
        peft=target.adapter,
        tokenizer=target.tokenizer,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
    if str(model.device).split(":")[0] != device.split(":")[0] or (":" in device and str(model.device) != device):
        raise ValueError(f"--device: the harness finds no {device!r} here and took {str(model.device)!r}")
    if chat_template and not model.tokenizer.chat_template:
        raise ValueError(f"--chat-template: the tokenizer of {target.tokenizer or target.base} has no chat template")
    return model


def dtype(model) -> str:
    """Of the weights, such as bfloat16."""
    return str(model.model.dtype).removeprefix("torch.")


def run(
    manager, model, tasks: Mapping, *, limit: int | None, chat_template: bool = False, run_model_code: bool = False
) -> dict:
    """The harness's results of some tasks.

    Args:
        manager: See `task_manager`.
        model: See `load_model`.
        tasks: See `load_tasks` and `prepare_tasks`.
        limit: Rows per task; None: all.
        chat_template: Whether prompts are put into the model's chat template, solved examples as earlier turns.
        run_model_code: Whether code that the model writes may be executed.

    Raises:
        Exception: Whatever the harness raises.
    """
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=model,
        tasks=list(tasks.values()),
        task_manager=manager,
        limit=limit,
        apply_chat_template=chat_template,
        log_samples=False,
        confirm_run_unsafe_code=run_model_code,
    )


def score(results: Mapping, tasks: Sequence[str], benchmark: Benchmark) -> dict:
    """The harness's results of the tasks as one score.

    Args:
        results: See `run`.
        tasks: Names.
        benchmark: Says which metric counts, and how.

    Returns:
        The metric (with its filter where there is one), score and standard error in [0, 1] (None where it is not
        known: the harness gives none, or all rows of a task score alike), shots (None where tasks differ), rows.

    Raises:
        ValueError: The results lack the metric, have it from several filters, or its value is not in [0, scale].
    """
    keys = {_metric_key(name, results["results"][name], benchmark) for name in tasks}
    if len(keys) > 1:
        raise ValueError(f"the tasks have {benchmark.metric!r} from different filters: {', '.join(sorted(keys))}")
    key = keys.pop()
    metric, filter_name = key.split(",")
    values = [results["results"][name][key] / benchmark.scale for name in tasks]
    for name, value in zip(tasks, values, strict=True):
        if not 0 <= value <= 1:
            raise ValueError(
                f"task {name!r}: its {metric} is {value * benchmark.scale:.4g}, not between 0 and {benchmark.scale:g}; "
                "`scale` must be the metric's best value (100 for percentages)"
            )
    stderrs = [results["results"][name].get(f"{metric}_stderr,{filter_name}") for name in tasks]
    rows = [results["n-samples"][name]["effective"] for name in tasks]
    shots = {results["n-shot"][name] for name in tasks}
    weights = rows if benchmark.weight == "rows" else [1] * len(rows)
    mean, stderr = weighted_mean(values, [_divided(one, benchmark.scale) for one in stderrs], weights)
    return {
        "metric": metric if filter_name == "none" else key,
        "score": mean,
        "stderr": stderr,
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "num_samples": sum(rows),
    }


def weighted_mean(
    values: Sequence[float], stderrs: Sequence[float | None], weights: Sequence[float]
) -> tuple[float, float | None]:
    """Mean of independent estimates and its standard error; None where one of them has none."""
    shares = [weight / sum(weights) for weight in weights]
    mean = math.fsum(share * value for share, value in zip(shares, values, strict=True))
    if any(stderr is None for stderr in stderrs):
        return mean, None
    return mean, math.sqrt(math.fsum((share * stderr) ** 2 for share, stderr in zip(shares, stderrs, strict=True)))


def _divided(stderr, scale: float) -> float | None:
    """The harness says "N/A" where it has none, and 0 where all rows score alike, which does not make it 0."""
    known = isinstance(stderr, (int, float)) and math.isfinite(stderr) and stderr > 0
    return float(stderr) / scale if known else None


def _metric_key(name: str, results: Mapping, benchmark: Benchmark) -> str:
    """The harness's own key, such as ``"acc,none"``: metric and filter."""
    keys = [key for key in results if "," in key and "_stderr," not in key]
    fits = [key for key in keys if key.split(",")[0] == benchmark.metric]
    if benchmark.filter is not None:
        fits = [key for key in fits if key.split(",")[1] == benchmark.filter]
    if len(fits) != 1:
        wanted = ",".join(filter(None, (benchmark.metric, benchmark.filter)))
        problem = "has several results for" if fits else "has no result for"
        raise ValueError(f"task {name!r} {problem} {wanted!r}; metric,filter it has: {' '.join(keys)}")
    return fits[0]


@contextmanager
def code_allowed(run_model_code: bool) -> Iterator[None]:
    """What the `evaluate` library asks for before it executes code, already while such tasks are loaded."""
    if not run_model_code:
        yield
        return
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_ALLOW_CODE_EVAL"]
        else:
            os.environ["HF_ALLOW_CODE_EVAL"] = before
