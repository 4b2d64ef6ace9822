"""How a comparison of runs is drawn; every function draws on an empty matplotlib figure that it is given."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from versatune_plugin.report.drawing import INK, PAPER, Mark, short
from versatune_plugin.report.parts import Chart

TARGET = Mark(INK, "-", "")
"""The line of the target's change."""

_WIDTH = 4.8  # inches
_FONT = 9  # points
_RUNS_PER_CHART = 6


@dataclass(frozen=True, kw_only=True)
class Series:
    """Numbers of a run, in the order of the axes."""

    name: str
    values: Sequence[float]
    mark: Mark


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What a run gained and lost at its checkpoints."""

    name: str
    checkpoints: Sequence[tuple[int, Mapping[str, float]]]
    """Step, and per cent gained by domain."""
    targets: Sequence[float]
    """Per cent that the target gained at each checkpoint; empty: no target."""


def several_charts(
    name: str, title: str, items: Sequence, baseline: str, chart: Callable[[str, str, list], Chart]
) -> list[Chart]:
    """One chart of all items, or several of six, each with the baseline's before the others.

    Args:
        name: Stem of the files.
        title: Of the charts; several are numbered, as their files are.
        items: Of a run each, whose `name` they have.
        baseline: Name of the baseline, which may have no item.
        chart: Makes one, of its file's stem, its title and its items.
    """
    if len(items) <= _RUNS_PER_CHART:
        return [chart(f"comparison-{name}", title, list(items))]
    first = [item for item in items if item.name == baseline]
    rest = [item for item in items if item.name != baseline]
    size = _RUNS_PER_CHART - len(first)
    groups = [[*first, *rest[start : start + size]] for start in range(0, len(rest), size)]
    return [
        chart(f"comparison-{name}-{number}", f"{title} ({number} of {len(groups)})", group)
        for number, group in enumerate(groups, start=1)
    ]


def draw_radar(figure, axes: Sequence[str], series: Sequence[Series], unit: str, zero: bool) -> None:
    """One polygon per series over three and more axes; further outside is more.

    Args:
        figure: An empty matplotlib figure; made higher, its width stays.
        axes: Names of the axes.
        series: One value per axis each.
        unit: Of the values, behind each number of the scale; may be empty.
        zero: Whether a circle marks 0.
    """
    figure.set_size_inches(_WIDTH, 4.3)
    plot = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
    angles = [2 * math.pi * place / len(axes) for place in range(len(axes))]
    for one in series:
        plot.plot(
            [*angles, angles[0]],
            [*one.values, one.values[0]],
            **one.mark.of_line,
            marker="o",
            markersize=3,
        )
    values = [value for one in series for value in one.values]
    low, high = min(0.0, *values), max(0.0, *values)
    inside = 0.25 * (high - low) if zero else 0.0  # room for polygons that lie around 0
    plot.set_ylim(low - inside, (high + 0.05 * (high - low)) or 1.0)
    _write_scale(plot, low, high, unit, angle=math.pi / len(axes))
    if zero:
        plot.plot([math.tau * part / 100 for part in range(101)], [0] * 101, color=INK, linewidth=1.2)
    plot.set_xticks(angles, [short(name, 16) for name in axes], fontsize=_FONT)
    for text, angle in zip(plot.get_xticklabels(), angles, strict=True):
        text.set_horizontalalignment(_side(angle))
    plot.tick_params(axis="x", pad=1)
    plot.grid(True)


def _write_scale(plot, low: float, high: float, unit: str, angle: float) -> None:
    """Numbers of the circles, at an angle between two axes, over the polygons and not under them."""
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    plot.set_yticks(ticks, [""] * len(ticks))
    behind = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    for tick in ticks:
        text = f"{round(tick, 9):g}{unit}"
        plot.text(angle, tick, text, fontsize=_FONT, ha="center", va="center", bbox=behind, zorder=4)


def _side(angle: float) -> str:
    """How a label at an angle (clockwise from the top) is set so that it does not reach into the circle."""
    across = math.sin(angle)
    return "center" if abs(across) < 0.1 else "left" if across > 0 else "right"


def draw_bars(figure, axes: Sequence[str], series: Sequence[Series], unit: str) -> None:
    """Grouped horizontal bars: a group per axis, a bar per series."""
    figure.set_size_inches(_WIDTH, 0.9 + 0.25 * len(axes) * (len(series) + 1))
    plot = figure.add_subplot()
    height = 1 / (len(series) + 1)
    for place, one in enumerate(series):
        plot.barh(
            [row + (place - (len(series) - 1) / 2) * height for row in range(len(axes))],
            one.values,
            height=height,
            **one.mark.of_area,
        )
    plot.axvline(0, color=INK, linewidth=0.8)
    plot.set_yticks(range(len(axes)), [short(name, 16) for name in axes], fontsize=_FONT)
    plot.set_ylim(len(axes) - 0.45, -0.55)
    plot.xaxis.set_major_formatter(f"{{x:g}}{unit}")
    plot.tick_params(axis="x", labelsize=_FONT)
    plot.grid(True, axis="x")
    plot.grid(False, axis="y")


def draw_checkpoints(figure, panels: Sequence[Panel], marks: Mapping[str, Mark]) -> None:
    """One panel per run: gains stacked upwards, losses downwards, per checkpoint; a line for the target.

    Args:
        figure: An empty matplotlib figure; made higher, its width stays.
        panels: Two stand side by side.
        marks: Of the domains, in the order of the stack.
    """
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure.set_size_inches(_WIDTH, 0.6 + 1.9 * rows)
    grid = figure.subplots(rows, columns, sharex=False, sharey=True, squeeze=False)
    for plot, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(plot, panel, marks)
    for plot in list(grid.flat)[len(panels) :]:
        plot.set_axis_off()
    figure.supylabel("percentage points, summed", fontsize=_FONT)
    figure.supxlabel("optimizer step", fontsize=_FONT)


def _draw_panel(plot, panel: Panel, marks: Mapping[str, Mark]) -> None:
    places = range(len(panel.checkpoints))
    up, down = [0.0] * len(places), [0.0] * len(places)
    for domain, mark in marks.items():
        gains = [gains.get(domain, 0.0) for _, gains in panel.checkpoints]
        bottoms = [up[place] if gain >= 0 else down[place] for place, gain in enumerate(gains)]
        plot.bar(places, gains, 0.75, bottoms, **mark.of_area)
        for place, gain in enumerate(gains):
            stack = up if gain >= 0 else down
            stack[place] += gain
    plot.axhline(0, color=INK, linewidth=0.8)
    if panel.targets:
        plot.plot(places, panel.targets, **TARGET.of_line, linewidth=1.4, marker="o", ms=4)
    plot.set_xticks(places, [str(step) for step, _ in panel.checkpoints], fontsize=_FONT)
    plot.tick_params(axis="y", labelsize=_FONT)
    plot.set_title(short(panel.name, 26), fontsize=_FONT, loc="left")
    plot.grid(True, axis="y")
    plot.grid(False, axis="x")


def draw_shares(figure, rows: Sequence[tuple[str, Mapping[str, float]]], marks: Mapping[str, Mark]) -> None:
    """One horizontal bar per run, its parts the shares of the domains."""
    figure.set_size_inches(_WIDTH, 0.6 + 0.32 * len(rows))
    plot = figure.add_subplot()
    lefts = [0.0] * len(rows)
    for domain, mark in marks.items():
        widths = [shares.get(domain, 0.0) for _, shares in rows]
        plot.barh(range(len(rows)), widths, 0.75, lefts, **mark.of_area)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    plot.set_yticks(range(len(rows)), [short(name, 22) for name, _ in rows], fontsize=_FONT)
    plot.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    plot.tick_params(axis="x", labelsize=_FONT)
