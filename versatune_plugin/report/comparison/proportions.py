"""The section on what each run asked for at its end, and what it drew over all its steps."""

from collections.abc import Mapping, Sequence
from functools import partial

from versatune_plugin.report.comparison.drawings import draw_shares
from versatune_plugin.report.comparison.outcomes import Comparison, union
from versatune_plugin.report.drawing import NUM_MARKS, marks
from versatune_plugin.report.parts import Chart, Section, Table
from versatune_plugin.tables import of_largest

_SAME = 5e-4  # proportions that are nearer are shown as the same
_NAMED = 3  # domains of a run that are named in words


def proportions_side_by_side(comparison: Comparison) -> Section:
    """Stacked bars of the proportions at the end and of the realised shares, one per run, and the numbers."""
    title, outcomes = "Proportions", [outcome for outcome in comparison.outcomes if outcome.final_proportions]
    if not outcomes:
        return Section(title=title, parts=[], points=["No run has a history."])
    domains = union(*(outcome.domains for outcome in outcomes))
    asked = {outcome.name: outcome.final_proportions for outcome in outcomes}
    drawn = {outcome.name: outcome.realised for outcome in outcomes if outcome.realised}
    charts = [_chart("final-proportions", "Proportions at the end", asked, domains)]
    if drawn:
        charts.append(_chart("realised-shares", "Realised shares of the whole run", drawn, domains))
    table = Table(
        header=["run", *domains],
        rows=[
            [name, *(_share(of.get(domain), drawn.get(name, {}).get(domain)) for domain in domains)]
            for name, of in asked.items()
        ],
        caption="Proportion at the end, in brackets the realised share of the whole run; - : no such domain",
    )
    return Section(title=title, parts=[*charts, table], points=[_furthest_apart(asked, domains)])


def _chart(name: str, title: str, by_run: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> Chart:
    rows = _folded(by_run, domains)
    is_folded = len(domains) > NUM_MARKS
    names = list(next(iter(rows.values()))) if is_folded else domains
    legend = dict(zip(names, marks(len(names)), strict=True))
    return Chart(
        name=f"comparison-{name}",
        title=title,
        alt="Stacked horizontal bars, one per run. " + " ".join(_in_words(name, of) for name, of in by_run.items()),
        draw=partial(draw_shares, rows=list(rows.items()), marks=legend),
        legend=legend,
        caption=f"Of {len(domains)} domains those are shown in which the runs differ most." if is_folded else "",
    )


def _folded(by_run: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> dict[str, dict[str, float]]:
    """The shares of as many domains as can be told apart, in which the runs differ most; of the others their sum."""
    if len(domains) <= NUM_MARKS:
        return {name: dict(of) for name, of in by_run.items()}
    shares = {domain: [of.get(domain, 0.0) for of in by_run.values()] for domain in domains}
    spreads = {domain: (max(of_domain) - min(of_domain), max(of_domain)) for domain, of_domain in shares.items()}
    shown = of_largest(spreads, NUM_MARKS - 1)
    others = f"{len(domains) - len(shown)} others"
    return {
        name: {domain: of.get(domain, 0.0) for domain in shown}
        | {others: sum(share for domain, share in of.items() if domain not in shown)}
        for name, of in by_run.items()
    }


def _in_words(name: str, shares: Mapping[str, float]) -> str:
    largest = sorted(shares, key=shares.get, reverse=True)
    texts = [f"{domain} {100 * shares[domain]:.0f} %" for domain in largest[:_NAMED]]
    rest = [f"{len(largest) - _NAMED} more"] if len(largest) > _NAMED else []
    return f"{name}: {', '.join(texts + rest)}."


def _share(asked: float | None, drawn: float | None) -> str:
    if asked is None:
        return "-"
    return f"{asked:.3f}" + ("" if drawn is None else f" ({drawn:.3f})")


def _furthest_apart(asked: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> str:
    """In which domain the runs ended furthest apart."""
    widest, apart, lowest, highest = "", 0.0, "", ""
    for domain in domains:
        shares = {name: of[domain] for name, of in asked.items() if domain in of}
        low, high = min(shares, key=shares.get), max(shares, key=shares.get)
        if shares[high] - shares[low] > max(apart, _SAME):
            widest, apart = domain, shares[high] - shares[low]
            lowest, highest = (f"{shares[name]:.3f} ({name})" for name in (low, high))
    if not widest:
        return "The runs ended with the same proportions."
    return f"The runs ended furthest apart in {widest}: {lowest} to {highest}."
