"""The plots of the page: gain and degradation along the runs, and the frontier of constant shares."""

import re
from collections.abc import Sequence
from pathlib import Path

from comparisons import interval
from outcomes import (
    NEARLY_ALL,
    PUBLISHED_LESS,
    Base,
    by_seed,
    constant_shares,
    curve,
    degradation,
    dynamic_rules,
    gain,
    measures,
)

from versatune_plugin.report.drawing import label, marks, new_figure, save_png

MARKERS = "osD^vP*Xh<>pd"
GREYS = ("#c8c8c8", "#101010")  # least and largest constant share


def short(name: str) -> str:
    """A run's name without its target, a constant share in percent, a variant in brackets so that lists can be read."""
    name, _, variant = name.split(": ", 1)[-1].partition(", ")
    share = re.fullmatch(r"share ([0-9.]+)", name)
    name = f"{float(share[1]):.0%} constant".replace("%", " %") if share else name
    return f"{name} ({variant})" if variant else name


def _looks(bases: Sequence[Base], target: str) -> dict[str, dict]:
    """Colour and marker of every dynamic rule, the same in all plots of a target."""
    names = list(dict.fromkeys(name for base in bases for name in dynamic_rules(base, target)))
    return {
        name: {"color": mark.colour, "marker": MARKERS[number % len(MARKERS)]}
        for number, (name, mark) in enumerate(zip(names, marks(len(names)), strict=True))
    }


def _grey(position: float) -> str:
    low, high = (int(grey[1:3], 16) for grey in GREYS)
    return "#" + f"{round(low + position * (high - low)):02x}" * 3


def plot_checkpoints(bases: Sequence[Base], target: str, path: Path) -> Path:
    """Target gain and degradation of the others over steps, a row of two panels per base; returns the path."""
    figure, looks = new_figure(11, 0.6 + 3.6 * len(bases)), _looks(bases, target)
    panels = figure.subplots(len(bases), 2, squeeze=False, sharex="row")
    for base, row in zip(bases, panels, strict=True):
        before, constant = base.facts["losses"], constant_shares(base, target)
        values = (
            ("target gain", lambda losses, before=before: gain(before, losses, target)),
            ("degradation of the others", lambda losses, before=before: degradation(before, losses, target)),
        )
        for axes, (title, value) in zip(row, values, strict=True):
            for name in (*constant, *dynamic_rules(base, target)):
                points = [(step, 100 * mean) for step, mean in curve(base, name, value)]
                grey = _grey(constant.index(name) / max(1, len(constant) - 1)) if name in constant else None
                style = {"color": grey, "ls": "--"} if grey else looks[name] | {"ms": 4.5}
                if points:
                    axes.plot(*zip(*points, strict=True), lw=1.5, label=label(short(name)), **style)
            axes.set(title=f"{base.name}: {title}", xlabel="optimizer step", ylabel="% of the loss before")
            axes.grid(alpha=0.3)
    _legend_below(figure, panels)
    return save_png(figure, path)


def constant_points(base: Base, target: str) -> dict[str, list[float]]:
    """Gain kept and degradation avoided by constant share, in %, over the seeds that `specific` has too."""
    of = [measures(target)[key] for key in ("kept", "less")]
    names = constant_shares(base, target)
    return {name: [100 * interval(by_seed(base, name, measure).values()).mean for measure in of] for name in names}


def plot_frontier(bases: Sequence[Base], target: str, path: Path) -> Path:
    """Target gain kept against degradation avoided, a panel per base, with 95 % intervals; returns the path."""
    figure, looks = new_figure(1 + 5.2 * len(bases), 5.6), _looks(bases, target)
    panels = figure.subplots(1, len(bases), squeeze=False)
    kept, less = measures(target)["kept"], measures(target)["less"]
    for base, axes in zip(bases, panels[0], strict=True):
        points = constant_points(base, target)
        axes.plot(*zip(*points.values(), strict=True), color="black", marker="o", ms=4, label="constant shares")
        for name, point in points.items():
            text = "100 %" if name.endswith(": specific") else short(name).removesuffix(" constant")
            axes.annotate(text, point, xytext=(-5, -5), textcoords="offset points", ha="right", va="top", fontsize=8)
        for name in dynamic_rules(base, target):
            x, y = (
                interval(100 * value for value in by_seed(base, name, measure).values()) for measure in (kept, less)
            )
            error = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
            error = error if x.n > 1 else {}
            axes.errorbar(
                x.mean, y.mean, **error, **looks[name], ls="", ms=7, capsize=3, lw=1, label=label(short(name))
            )
        axes.axvline(100 * NEARLY_ALL, color="grey", lw=0.8, ls=":")
        axes.axhline(100 * PUBLISHED_LESS, color="grey", lw=0.8, ls=":")
        axes.set(title=base.name, xlabel=f"gain of {label(target)} kept (%)", ylabel="degradation avoided (%)")
        axes.margins(0.15, 0.1)  # room for the labels
        axes.grid(alpha=0.3)
    _legend_below(figure, panels)
    return save_png(figure, path)


def _legend_below(figure, panels) -> None:
    """One legend for all panels, outside of them."""
    named = {}
    for axes in panels.flat:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, fontsize=8)
