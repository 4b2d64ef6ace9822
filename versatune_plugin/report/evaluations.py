"""What `versatune evaluate` measured of a run's checkpoints."""

import numpy as np

from versatune_plugin.evaluation.results import DomainResult, Evaluation, Result
from versatune_plugin.report.drawing import INK, marks, short
from versatune_plugin.report.parts import Chart, Section, Table
from versatune_plugin.report.runs import Run
from versatune_plugin.report.summary import counted, shown


def evaluations_section(run: Run) -> Section | None:
    """Scores per domain, and the tasks behind them; None where nothing was evaluated."""
    if not run.evaluations:
        return None
    domains = list(dict.fromkeys(domain for document in run.evaluations.values() for domain in document.domains))
    newest = list(run.evaluations.values())[-1]
    return Section(
        title="Benchmarks",
        parts=[_chart(run, domains), _scores(run, domains), _tasks(newest)],
        text="Scores of the evaluation harness; a domain's is the mean over its benchmarks, as far as they were run.",
        warnings=_warnings(run),
    )


def _warnings(run: Run) -> list[str]:
    left_out = {
        f"Not evaluated: {item.task} of {item.domain}: {item.reason}."
        for document in run.evaluations.values()
        for item in document.left_out
    }
    limits = {document.limit for document in run.evaluations.values() if document.limit is not None}
    return [f"Only the first samples of each task were taken (limit {limit})." for limit in sorted(limits)] + sorted(
        left_out
    )


def _when(step: int | None) -> str:
    return "finished model" if step is None else f"step {step:,}"


def _score(document: Evaluation, domain: str) -> tuple[float | None, float | None]:
    """Of a domain, and its standard error."""
    measured = document.domains.get(domain)
    return (measured.score, measured.stderr) if measured else (None, None)


def _chart(run: Run, domains: list[str]) -> Chart:
    whens = [_when(step) for step in run.evaluations]
    documents, number = list(run.evaluations.values()), len(run.evaluations)
    shades = marks(number)

    def draw(figure) -> None:
        figure.set_size_inches(4.8, max(2.0, 0.8 + len(domains) * (0.16 * number + 0.14)))
        axes, height = figure.subplots(), 0.8 / number
        for position, (document, mark) in enumerate(zip(documents, shades, strict=True)):
            scores, errors = np.array([_score(document, domain) for domain in domains], dtype=float).reshape(-1, 2).T
            places = np.arange(len(domains)) - 0.4 + (position + 0.5) * height
            axes.barh(places, scores, height, xerr=errors, error_kw={"lw": 0.9, "ecolor": INK}, **mark.of_area)
        axes.set_yticks(range(len(domains)), [short(domain) for domain in domains])
        axes.set(ylim=(len(domains) - 0.4, -0.6), xlabel="score")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    words = [f"{domain} {shown(_score(documents[-1], domain)[0], unknown='unknown')}" for domain in domains]
    return Chart(
        name="benchmarks",
        title="Scores by domain",
        alt=f"Scores of the {whens[-1]}: {', '.join(words)}.",
        draw=draw,
        legend=dict(zip(whens, shades, strict=True)),
        caption="Lines on the bars: one standard error. No bar: not evaluated.",
    )


def _scores(run: Run, domains: list[str]) -> Table:
    rows = [
        (domain, *(_with_error(document.domains.get(domain)) for document in run.evaluations.values()))
        for domain in domains
    ]
    return Table(
        header=("domain", *map(_when, run.evaluations)), rows=rows, caption="Scores by domain, with standard errors."
    )


def _tasks(document: Evaluation) -> Table:
    rows = [
        (
            task.title,
            domain,
            task.metric,
            _with_error(task),
            counted(task.num_fewshot),
            counted(task.num_samples),
        )
        for domain, measured in document.domains.items()
        for task in measured.tasks.values()
    ]
    header = ("task", "domain", "metric", "score", "shots", "samples")
    caption = f"Tasks behind the newest scores (model: {document.model.name})."
    return Table(header=header, rows=rows, words=(1, 2), caption=caption)


def _with_error(measured: DomainResult | Result | None) -> str:
    """A score; where it is the mean of fewer benchmarks than the domain has, of how many."""
    if measured is None:
        return shown(None)
    error = "" if measured.stderr is None else f" ± {measured.stderr:.3f}"
    partial = ""
    if isinstance(measured, DomainResult) and measured.num_benchmarks != measured.of:
        partial = f" ({measured.num_benchmarks} of {measured.of})"
    return shown(measured.score) + error + partial
