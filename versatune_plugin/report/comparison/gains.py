"""The section on how far the losses fell and how the benchmarks went, domain by domain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from versatune_plugin.report.comparison.drawings import Series, draw_bars, draw_radar, several_charts
from versatune_plugin.report.comparison.outcomes import Comparison, mean
from versatune_plugin.report.comparison.scores import Scores, comparable
from versatune_plugin.report.drawing import NUM_MARKS, Mark, marks
from versatune_plugin.report.parts import Chart, Section, Table
from versatune_plugin.report.series import sentences as sentences_of
from versatune_plugin.tables import of_largest

NO_GAINS = "No run has losses both before its first step and later, so what it gained is not known."

_NAMED = 3  # runs that are described one by one
_FEWEST_AXES = 3  # of a radar chart


def gains_by_domain(comparison: Comparison, scores: Sequence[Scores]) -> Section:
    """Radar charts: how far each domain's loss fell, and the scores; bars where there are fewer than three domains."""
    alike, run_marks = comparison.alike, marks_of_runs(comparison)
    baseline, points = comparison.baseline.name, [] if alike else [NO_GAINS]
    parts: list[Table | Chart] = []
    if alike:
        gains, domains = {outcome.name: outcome.gains() for outcome in alike}, alike[0].domains
        series = [_series(name, gains[name], domains, run_marks) for name in gains]
        parts += [*_polygons("gains", "Fall of the loss", domains, series, " %", baseline), _table(gains, domains)]
        ranked = sorted(gains, key=lambda name: mean(gains[name], domains), reverse=True)
        sentences = {_gain_in_words(name, gains[name]): mean(gains[name], domains) for name in ranked}
        points += of_the_extremes(sentences, "Largest fall", "Smallest fall")
    if beside := comparable(scores, baseline):
        domains = tuple(beside[0].values)
        series = [_series(one.name, one.values, domains, run_marks) for one in beside]
        parts += _polygons("scores", "Scores of benchmarks", domains, series, "", baseline)
    text = "Further outside, or to the right, is better." if parts else ""
    return Section(title="Gain by domain", text=text, parts=parts, points=points + left_out(comparison))


def marks_of_runs(comparison: Comparison) -> dict[str, Mark]:
    """How each run is drawn."""
    names = [outcome.name for outcome in comparison.outcomes]
    return dict(zip(names, marks(len(names)), strict=True))


def of_the_extremes(sentences: Mapping[str, float], first: str, last: str) -> list[str]:
    """All of a few sentences; of many the first and the last, with what they are the first and the last of.

    Args:
        sentences: One per run, with the numbers by which they are ordered.
        first: What the first one is.
        last: What the last one is.
    """
    said, numbers = list(sentences), [round(number, 1) for number in sentences.values()]
    if len(said) <= _NAMED:
        return said
    if numbers[0] == numbers[-1]:
        return [f"{first} and {last[0].lower()}{last[1:]} are the same in all {len(said)} runs; {said[0]}"]
    return [f"{first}, {said[0]}", f"{last}, {said[-1]}"]


def left_out(comparison: Comparison) -> list[str]:
    """Which runs are not drawn beside the others, and why."""
    alike = comparison.alike
    missing = [outcome.name for outcome in comparison.outcomes if outcome not in alike]
    if not alike or not missing:
        return []
    return [
        f"Not drawn, without losses since the start that can be set beside those of {alike[0].name}: "
        f"{', '.join(missing)}."
    ]


def _series(name: str, values: Mapping[str, float], axes: Sequence[str], run_marks: Mapping[str, Mark]) -> Series:
    return Series(name=name, values=[values[axis] for axis in axes], mark=run_marks[name])


def _polygons(
    name: str, title: str, axes: Sequence[str], series: Sequence[Series], unit: str, baseline: str
) -> list[Chart]:
    note = f"Of {len(axes)} domains those are shown in which the runs differ most." if len(axes) > NUM_MARKS else ""
    axes, series = _furthest_apart(axes, series)
    is_radar = len(axes) >= _FEWEST_AXES
    if is_radar:
        form = "Radar chart, one axis per domain, one polygon per run"
        draw: Callable = partial(draw_radar, zero=bool(unit))
    else:
        form, draw = "Horizontal bars, a group per domain, a bar per run", draw_bars

    def chart(name: str, title: str, group: list[Series]) -> Chart:
        return Chart(
            name=name,
            title=title,
            alt=f"{form}. " + " ".join(_range_in_words(one, axes, unit) for one in group),
            draw=partial(draw, axes=axes, series=group, unit=unit),
            legend={one.name: one.mark for one in group},
            caption=sentences_of(
                "Per cent of the loss at the start; at the line of 0 a domain is where it was." if unit else "", note
            ),
        )

    return several_charts(f"{name}-{'radar' if is_radar else 'bars'}", title, series, baseline, chart)


def _furthest_apart(axes: Sequence[str], series: Sequence[Series]) -> tuple[Sequence[str], Sequence[Series]]:
    """As many axes as can be told apart: those on which the series differ most; with the values on them."""
    values = list(zip(*(one.values for one in series), strict=True))
    spreads = {axis: max(of_axis) - min(of_axis) for axis, of_axis in zip(axes, values, strict=True)}
    shown = of_largest(spreads, NUM_MARKS)
    places = [place for place, axis in enumerate(axes) if axis in shown]
    return shown, [replace(one, values=[one.values[place] for place in places]) for one in series]


def _range_in_words(series: Series, axes: Sequence[str], unit: str) -> str:
    numbers = [f"{value:.1f}{unit}" if unit else f"{value:.3f}" for value in series.values]
    if len(axes) <= _FEWEST_AXES:
        return f"{series.name}: " + ", ".join(map(" ".join, zip(axes, numbers, strict=True))) + "."
    places = sorted(range(len(axes)), key=series.values.__getitem__)
    low, high = (f"{axes[place]} {numbers[place]}" for place in (places[0], places[-1]))
    return f"{series.name}: lowest {low}, highest {high}."


def _table(gains: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> Table:
    with_mean = len(domains) > 1
    rows = []
    for name, of in gains.items():
        values = [*(of[domain] for domain in domains), *([mean(of, domains)] if with_mean else [])]
        rows.append([name, *(f"{value:+z.1f}" for value in values)])
    header = ["run", *domains, *(["mean"] if with_mean else [])]
    return Table(header=header, rows=rows, caption="Fall of the loss since the start, % of it; below 0: it rose")


def _gain_in_words(name: str, gains: Mapping[str, float]) -> str:
    average = mean(gains, tuple(gains))
    fell = f"{name}: the loss {'fell' if average >= 0 else 'rose'} by {abs(average):.1f} %"
    if len(gains) == 1:
        return f"{fell}."
    lowest, highest = min(gains, key=gains.get), max(gains, key=gains.get)
    risen = sum(gain < 0 for gain in gains.values())
    return (
        f"{fell} on the mean of {len(gains)} domains, from {lowest} {gains[lowest]:+.1f} % to {highest} "
        f"{gains[highest]:+.1f} %; {risen or 'none'} worse than at the start."
    )
