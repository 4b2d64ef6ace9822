"""The section on what the benchmarks say of each run's model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_plugin.evaluation.results import Evaluation, Result
from versatune_plugin.report.comparison.matrices import (
    Difference,
    Entry,
    Row,
    cell,
    difference,
    entries,
    how_to_read,
    in_words,
    matrix,
)
from versatune_plugin.report.comparison.outcomes import Comparison, union
from versatune_plugin.report.parts import Section, Table
from versatune_plugin.report.runs import Run


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A model's evaluation: the finished model's, or the latest one's."""

    name: str
    """Of the run."""
    step: int | None
    evaluation: Evaluation

    @classmethod
    def of(cls, run: Run) -> "Scores | None":
        """The scores of a run; None where it was not evaluated."""
        if not run.evaluations:
            return None
        step = None if None in run.evaluations else max(run.evaluations)
        return cls(name=run.name, step=step, evaluation=run.evaluations[step])

    @property
    def values(self) -> dict[str, float]:
        """Score by domain, where there is one."""
        return {domain: of.score for domain, of in self.evaluation.domains.items()}

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of the score by domain, where it is known."""
        return {domain: of.stderr for domain, of in self.evaluation.domains.items() if of.stderr is not None}

    def tasks(self, domain: str) -> Mapping[str, Result]:
        """The benchmarks of a domain, by name."""
        return self.evaluation.tasks(domain)


def obstacle(one: Scores, other: Scores, domain: str) -> str | None:
    """Why two scores of a domain cannot be compared, said of the first model; None: they can."""
    if domain not in one.values:
        return "has no score"
    if domain not in other.values:
        return f"has a score where {other.name} has none"
    if one.evaluation.chat_template != other.evaluation.chat_template:
        how = "with" if one.evaluation.chat_template else "without"
        return f"was evaluated {how} a chat template, unlike {other.name}"
    ours, theirs = one.tasks(domain), other.tasks(domain)
    if ours.keys() != theirs.keys():
        return f"was evaluated on other benchmarks than {other.name}"
    for key, what in (("metric", "by another metric"), ("num_fewshot", "with another number of shots")):
        if any(getattr(ours[task], key) != getattr(theirs[task], key) for task in ours):
            return f"was evaluated {what} than {other.name}"
    few = one.evaluation.limit != other.evaluation.limit
    if few or any(ours[task].num_samples != theirs[task].num_samples for task in ours):
        return f"was evaluated on another number of questions than {other.name}"
    return None


def comparable(scores: Sequence[Scores], baseline: str) -> list[Scores]:
    """Those whose every domain can be set beside the baseline's, or where it has no scores beside the first one's."""
    if not scores:
        return []
    first = next((one for one in scores if one.name == baseline), scores[0])
    domains = union(*(one.evaluation.domains for one in scores))
    return [one for one in scores if all(obstacle(one, first, domain) is None for domain in domains)]


def scores_of_benchmarks(comparison: Comparison, scores: Sequence[Scores]) -> Section:
    """Two tables: a score per run and domain, and the single benchmarks; each with the difference to the baseline.

    Args:
        comparison: The runs.
        scores: Those of the runs that were evaluated, at least one.
    """
    name = comparison.baseline.name
    baseline = next((one for one in scores if one.name == name), None)
    domains = union(*(one.evaluation.domains for one in scores))
    rows = [
        Row(
            name=one.name,
            entries=entries(one.values, one.errors, domains),
            changes=_differences(one, baseline, domains) if baseline and one is not baseline else {},
        )
        for one in scores
    ]
    caption = "Score: mean of the domain's benchmarks; Avg: mean of the domains; - : not evaluated"
    return Section(
        title="Scores of benchmarks",
        text=how_to_read(rows, name, "questions"),
        points=in_words(rows, name, "is", ""),
        parts=[matrix(rows, domains, name, "Avg", caption), _benchmarks(scores, baseline, domains)],
        warnings=_warnings(comparison, scores, baseline, domains),
    )


def _differences(one: Scores, baseline: Scores, domains: Sequence[str]) -> dict[str | None, Difference | None]:
    """Differences to the baseline's scores where they can be compared; (None) of the mean where all can."""
    ours, theirs = (entries(of.values, of.errors, domains) for of in (one, baseline))
    columns: list[str | None] = [domain for domain in domains if obstacle(one, baseline, domain) is None]
    if len(columns) == len(domains):
        columns.append(None)
    return {column: difference(ours[column], theirs[column], higher_is_better=True) for column in columns}


def _benchmarks(scores: Sequence[Scores], baseline: Scores | None, domains: Sequence[str]) -> Table:
    """One row per benchmark, by domain; one column per run."""
    rows = []
    for domain in domains:
        for task in union(*(one.tasks(domain) for one in scores)):
            facts = next(one.tasks(domain)[task] for one in scores if task in one.tasks(domain))
            base = _entry(baseline.tasks(domain).get(task)) if baseline else None
            cells = []
            for one in scores:
                entry = _entry(one.tasks(domain).get(task))
                alike = baseline is not None and one is not baseline and _same_task(one, baseline, domain, task)
                cells.append(cell(entry, difference(entry, base, higher_is_better=True) if alike else None))
            rows.append([f"{domain}: {_title(facts)}", *cells])
    header = ["benchmark", *(one.name for one in scores)]
    return Table(header=header, rows=rows, caption="The single benchmarks; - : not evaluated")


def _entry(task: Result | None) -> Entry | None:
    return None if task is None else Entry(task.score, task.stderr)


def _same_task(one: Scores, other: Scores, domain: str, task: str) -> bool:
    ours, theirs = (scores.tasks(domain).get(task) for scores in (one, other))
    if ours is None or theirs is None:
        return False
    settings = {(of.evaluation.limit, of.evaluation.chat_template) for of in (one, other)}
    asked = {(of.metric, of.num_fewshot, of.num_samples) for of in (ours, theirs)}
    return len(settings) == len(asked) == 1


def _title(task: Result) -> str:
    """A benchmark's name, and how it was asked."""
    shots = "" if task.num_fewshot is None else f", {task.num_fewshot}-shot"
    return f"{task.title} ({task.metric}{shots})"


def _warnings(
    comparison: Comparison, scores: Sequence[Scores], baseline: Scores | None, domains: Sequence[str]
) -> list:
    found, evaluated = [], {one.name for one in scores}
    if without := [outcome.name for outcome in comparison.outcomes if outcome.name not in evaluated]:
        found.append(f"not evaluated: {', '.join(without)}")
    if baseline is None:
        found.append(f"the baseline {comparison.baseline.name} was not evaluated: no differences of scores are shown")
    found += [f"{one.name} was evaluated at step {one.step}, not at its end" for one in scores if one.step is not None]
    for one in scores:
        reasons: dict[str, list[str]] = {}
        for domain in domains if baseline and one is not baseline else ():
            if (reason := obstacle(one, baseline, domain)) is not None:
                reasons.setdefault(reason, []).append(domain)
        found += [f"{one.name}: {why} ({', '.join(which)}): no difference is shown" for why, which in reasons.items()]
    left_out: dict[str, list[str]] = {}
    for one in scores:
        for gap in one.evaluation.left_out:
            text = f"{gap.domain}: {gap.task} is left out: {gap.reason}"
            left_out.setdefault(text, []).append(one.name)
    return found + [f"{text} ({', '.join(names)})" for text, names in left_out.items()]
