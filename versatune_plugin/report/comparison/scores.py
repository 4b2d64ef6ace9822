"""The section on what the benchmarks say of each run's model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    domains: Mapping[str, Mapping]
    limit: float | None
    with_template: bool
    left_out: Sequence[Mapping] = field(default_factory=tuple)

    @classmethod
    def of(cls, run: Run) -> "Scores | None":
        """The scores of a run; None where it was not evaluated."""
        if not run.evaluations:
            return None
        step = None if None in run.evaluations else max(run.evaluations)
        document = run.evaluations[step]
        return cls(
            name=run.name,
            step=step,
            domains=document.get("domains") or {},
            limit=document.get("limit"),
            with_template=bool(document.get("chat_template")),
            left_out=document.get("left_out") or (),
        )

    @property
    def values(self) -> dict[str, float]:
        """Score by domain, where there is one."""
        return {domain: of["score"] for domain, of in self.domains.items() if of.get("score") is not None}

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of the score by domain, where it is known."""
        return {domain: of["stderr"] for domain, of in self.domains.items() if of.get("stderr") is not None}

    def tasks(self, domain: str) -> Mapping[str, Mapping]:
        """The benchmarks of a domain, by name."""
        return self.domains.get(domain, {}).get("tasks") or {}


def obstacle(one: Scores, other: Scores, domain: str) -> str | None:
    """Why two scores of a domain cannot be compared, said of the first model; None: they can."""
    if domain not in one.values:
        return "has no score"
    if domain not in other.values:
        return f"has a score where {other.name} has none"
    if one.with_template != other.with_template:
        return f"was evaluated {'with' if one.with_template else 'without'} a chat template, unlike {other.name}"
    ours, theirs = one.tasks(domain), other.tasks(domain)
    if ours.keys() != theirs.keys():
        return f"was evaluated on other benchmarks than {other.name}"
    for key, what in (("metric", "by another metric"), ("num_fewshot", "with another number of shots")):
        if any(ours[task].get(key) != theirs[task].get(key) for task in ours):
            return f"was evaluated {what} than {other.name}"
    few = one.limit != other.limit
    if few or any(ours[task].get("num_samples") != theirs[task].get("num_samples") for task in ours):
        return f"was evaluated on another number of questions than {other.name}"
    return None


def comparable(scores: Sequence[Scores], baseline: str) -> list[Scores]:
    """Those whose every domain can be set beside the baseline's, or where it has no scores beside the first one's."""
    if not scores:
        return []
    first = next((one for one in scores if one.name == baseline), scores[0])
    domains = union(*(one.domains for one in scores))
    return [one for one in scores if all(obstacle(one, first, domain) is None for domain in domains)]


def scores_of_benchmarks(comparison: Comparison, scores: Sequence[Scores]) -> Section:
    """Two tables: a score per run and domain, and the single benchmarks; each with the difference to the baseline.

    Args:
        comparison: The runs.
        scores: Those of the runs that were evaluated, at least one.
    """
    name = comparison.baseline.name
    baseline = next((one for one in scores if one.name == name), None)
    domains = union(*(one.domains for one in scores))
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
            base = baseline and _entry(baseline.tasks(domain).get(task))
            cells = []
            for one in scores:
                entry = _entry(one.tasks(domain).get(task))
                alike = baseline is not None and one is not baseline and _same_task(one, baseline, domain, task)
                cells.append(cell(entry, difference(entry, base, higher_is_better=True) if alike else None))
            rows.append([f"{domain}: {_title(task, facts)}", *cells])
    header = ["benchmark", *(one.name for one in scores)]
    return Table(header=header, rows=rows, caption="The single benchmarks; - : not evaluated")


def _entry(task: Mapping | None) -> Entry | None:
    return Entry(task["score"], task.get("stderr")) if task and task.get("score") is not None else None


def _same_task(one: Scores, other: Scores, domain: str, task: str) -> bool:
    ours, theirs = (scores.tasks(domain).get(task) for scores in (one, other))
    keys, settings = ("metric", "num_fewshot", "num_samples"), ((of.limit, of.with_template) for of in (one, other))
    return bool(ours and theirs) and len(set(settings)) == 1 and all(ours.get(key) == theirs.get(key) for key in keys)


def _title(task: str, facts: Mapping) -> str:
    """A benchmark's name, and how it was asked."""
    shots = facts.get("num_fewshot")
    how = [facts.get("metric"), None if shots is None else f"{shots}-shot"]
    return f"{facts.get('title') or task} ({', '.join(filter(None, how))})"


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
        for gap in one.left_out:
            text = f"{gap['domain']}: {gap['task']} is left out: {gap['reason']}"
            left_out.setdefault(text, []).append(one.name)
    return found + [f"{text} ({', '.join(names)})" for text, names in left_out.items()]
