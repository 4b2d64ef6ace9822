"""What `versatune evaluate` prints: results as a table, and with --list what there is to evaluate."""

from collections.abc import Callable, Sequence

from versatune_plugin.evaluation.results import DomainResult, Evaluation, Result
from versatune_plugin.evaluation.suite import Benchmark, Suite
from versatune_plugin.tables import aligned


def format_evaluation(evaluation: Evaluation) -> str:
    """Domains and benchmarks as a table, what was left out, and what the results say of themselves."""
    table = [["", "metric", "shots", "rows", "score", "+-"]]
    for domain, part in evaluation.domains.items():
        number, of = part.num_benchmarks, part.of
        table.append([domain, "mean" if number == of else f"mean of {number} of {of}", "", "", *_numbers(part)])
        for task in part.tasks.values():
            shots = "mixed" if task.num_fewshot is None else str(task.num_fewshot)
            table.append([f"  {task.title}", task.metric, shots, f"{task.num_samples:,}", *_numbers(task)])
    lines = [aligned(table)] if len(table) > 1 else ["no benchmark was evaluated"]
    if evaluation.limit is not None:
        lines.append(f"at most {evaluation.limit} rows per task: a trial, not a result to report")
    if evaluation.chat_template:
        lines.append("with the model's chat template")
    lines += [f"left out: {one.domain} / {one.task}: {one.reason}" for one in evaluation.left_out]
    return "\n".join(lines)


def _numbers(part: DomainResult | Result) -> list[str]:
    return ["-" if number is None else f"{number:.3f}" for number in (part.score, part.stderr)]


def format_benchmarks(suite: Suite, domains: Sequence[str], default_shots: Callable[[list[str]], int | None]) -> str:
    """What the domains' benchmarks are: tasks, metric and shots, or why there are none.

    Args:
        suite: All benchmarks.
        domains: Names of some domains of it.
        default_shots: The harness's, by its tasks' names; None where it does not say.
    """
    lines = []
    for domain in domains:
        lines.append(domain)
        for name, benchmark in suite.domains[domain].items():
            lines.append(f"  {name}: {benchmark.title or name}")
            if benchmark.missing:
                lines.append(f"    missing: {benchmark.missing}")
                continue
            lines.append(f"    {', '.join(benchmark.tasks)}; {benchmark.metric}; {_shots(benchmark, default_shots)}")
            if benchmark.runs_code:
                lines.append("    executes code that the model writes: with --run-model-code only")
    return "\n".join(lines)


def _shots(benchmark: Benchmark, default_shots: Callable[[list[str]], int | None]) -> str:
    if benchmark.num_fewshot is not None:
        return _number(benchmark.num_fewshot)
    shots = default_shots(benchmark.tasks)
    return "shots: each task's default" if shots is None else f"{_number(shots)} (the task's default)"


def _number(shots: int) -> str:
    return f"{shots} shot{'' if shots == 1 else 's'}"
