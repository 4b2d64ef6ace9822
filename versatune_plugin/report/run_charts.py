"""The charts of one run: mixture, shares, passes, losses, potential, forgetting."""

from collections.abc import Mapping, Sequence

import numpy as np

from versatune_plugin.files.record import Record
from versatune_plugin.report.drawing import INK, LEGEND, MUTED, Mark, marks, over_steps, short
from versatune_plugin.report.parts import Chart
from versatune_plugin.report.series import (
    matrix,
    proportions_over_steps,
    sentences,
    thinned,
    thinning_note,
)
from versatune_plugin.report.summary import measured_anew, percent, plural, shown

MAX_BANDS = 8
"""Domains up to which bands of standard errors and lines of references can be told apart."""
_UNITS = {"tokens": "tokens", "target_tokens": "target tokens"}


def unit_words(records: Sequence[Record]) -> str:
    """What the run's proportions are shares of."""
    return _UNITS.get(records[0].unit, "drawn rows")


def loss_words(records: Sequence[Record]) -> str:
    """What the run's losses are of."""
    return "training loss" if records[0].signal == "train" else "held-out loss"


def proportions_chart(records: Sequence[Record]) -> Chart:
    """The mixture, stacked, over the steps at which it acts."""
    domains = list(records[0].proportions)
    _, stacks = proportions_over_steps(records)

    def draw(figure) -> None:
        axes = figure.subplots()
        draw_mixture(axes, records, "")
        over_steps(axes)

    ends = zip(domains, stacks[0], stacks[-1], strict=True)
    changes = "; ".join(f"{domain} {percent(first)} to {percent(last)}" for domain, first, last in ends)
    return Chart(
        name="proportions",
        title="The mixture",
        alt=f"Proportions over {plural(records[-1].step, 'optimizer step')}, from the first to the last: {changes}.",
        draw=draw,
        legend=dict(reversed(_legend(domains).items())),
        caption=sentences(
            f"Proportions of {unit_words(records)}, stacked, from the step on at which they act.",
            thinning_note(len(stacks)),
        ),
    )


def draw_mixture(axes, records: Sequence[Record], title: str) -> None:
    """Proportions, stacked, over the optimizer steps at which they act."""
    domains = list(records[0].proportions)
    steps, stacks = proportions_over_steps(records)
    chosen = thinned(len(steps))
    steps, tops = steps[chosen], np.cumsum(stacks[chosen], axis=1)
    bottoms = np.hstack([np.zeros((len(tops), 1)), tops[:, :-1]])
    axes.margins(x=0)
    for domain_id, (domain, mark) in enumerate(_legend(domains).items()):
        area = (steps, bottoms[:, domain_id], tops[:, domain_id])
        axes.fill_between(*area, step="post", label=short(domain, LEGEND), **mark.of_area)
    axes.grid(visible=False)
    axes.set(ylabel=f"proportion of {unit_words(records)}", ylim=(0, 1), title=title)


def realised_columns(unit: str | None) -> dict[str, str]:
    """What is set beside the requested shares: names, and keys of the summary; the run's own unit comes first."""
    columns = {"realised": "realised", "of rows": "examples", "of tokens": "tokens"}
    same = {"tokens": "of tokens", "target_tokens": None}.get(unit, "of rows")
    return {name: key for name, key in columns.items() if name != same}


def shares_chart(records: Sequence[Record], summary: Sequence[Mapping]) -> Chart:
    """Requested against realised shares per domain, in the run's own unit and in rows and tokens."""
    looks = [marks(1)[0], Mark(marks(2)[1].colour, "-", "///"), Mark(marks(3)[2].colour, "-", "...")]
    columns = realised_columns(records[-1].unit)
    kinds = {"requested": ("requested", Mark(MUTED, "-", ""))} | {
        name: (key, mark) for (name, key), mark in zip(columns.items(), looks, strict=False)
    }
    kinds = {name: kind for name, kind in kinds.items() if any(row[kind[0]] is not None for row in summary)}

    def draw(figure) -> None:
        thickness = 0.12 if len(summary) <= 8 else 0.085
        figure.set_size_inches(4.8, max(2.2, 0.8 + len(summary) * thickness * (len(kinds) + 1)))
        axes, height = figure.subplots(), 0.8 / max(len(kinds), 1)
        for number, (key, mark) in enumerate(kinds.values()):
            places = [row - 0.4 + (number + 0.5) * height for row in range(len(summary))]
            axes.barh(places, [100 * (row[key] or 0) for row in summary], height, **mark.of_area)
        _domains_down(axes, summary)
        axes.set(xlabel="share of the run, %")

    words = [
        f"{row['domain']} {', '.join(f'{name} {_percent(row[key])}' for name, (key, _) in kinds.items())}"
        for row in summary
    ]
    return Chart(
        name="shares",
        title="Requested and realised",
        alt=f"Shares per domain over the whole run: {'; '.join(words)}.",
        draw=draw,
        legend={name: mark for name, (_, mark) in kinds.items()},
        caption="What the mixture asked for, averaged over the run, and what was trained on, as shares of "
        f"{unit_words(records)}; beside it shares of {_beside(columns)}.",
    )


def _beside(columns: Mapping) -> str:
    return " and ".join(name.removeprefix("of ") for name in columns if name != "realised")


def passes_chart(summary: Sequence[Mapping]) -> Chart:
    """How often the run went through each domain's rows."""
    mark, passes = marks(1)[0], [row["passes"] or 0 for row in summary]
    has_line = max(passes) > 0.7

    def draw(figure) -> None:
        figure.set_size_inches(4.8, max(1.7, 0.8 + 0.27 * len(summary)))
        axes = figure.subplots()
        axes.barh(range(len(summary)), passes, 0.62, **mark.of_area)
        for place, row in enumerate(summary):
            axes.text(passes[place], place, f" {shown(row['passes'], 2, 'unknown')}", va="center", ha="left")
        if has_line:
            axes.axvline(1, color=INK, lw=0.8, ls=":")
        _domains_down(axes, summary)
        axes.set(xlabel="passes over the domain's rows", xlim=(0, 1.18 * max(*passes, 0.01)))

    words = [f"{row['domain']} {shown(row['passes'], 2, 'unknown')}" for row in summary]
    return Chart(
        name="passes",
        title="Passes over the data",
        alt=f"Passes over each domain's rows: {', '.join(words)}.",
        draw=draw,
        legend={},
        caption="Drawn rows by the domain's rows" + ("; above 1 (dotted) rows were seen again." if has_line else "."),
    )


def losses_chart(records: Sequence[Record]) -> Chart:
    """Measured losses with their standard errors, and the reference losses, dotted."""
    losses, errors = matrix(records, "losses"), matrix(records, "loss_errors")
    domains, references = list(records[0].proportions), _references(records)
    has_bands = len(domains) <= MAX_BANDS and not np.isnan(errors).all()

    def draw(figure) -> None:
        axes = figure.subplots()
        draw_lines(axes, records, losses, errors if has_bands else None)
        draw_references(axes, records)
        axes.set(ylabel=f"nats per {'byte' if records[0].loss_unit == 'byte' else 'target token'}")

    return Chart(
        name="losses",
        title=loss_words(records).capitalize(),
        alt=f"{loss_words(records).capitalize()} by domain, first and last: {_ends(domains, losses, '{:.3f}')}.",
        draw=draw,
        legend=_legend(domains),
        caption=sentences(
            "Bands: one standard error over draws of the held-out rows." if has_bands else "",
            "Dotted: reference losses." if references else "",
            _notes(records),
        ),
    )


def signal_chart(records: Sequence[Record], key: str, name: str, title: str, axis: str, caption: str) -> Chart | None:
    """Something that was derived from the losses, in percent over steps; None where it is never known, or always 0."""
    values, domains = 100 * matrix(records, key), list(records[0].proportions)
    if not (np.abs(np.nan_to_num(values)) > 0).any():
        return None

    def draw(figure) -> None:
        axes = figure.subplots()
        draw_lines(axes, records, values)
        axes.set(ylabel=axis)

    return Chart(
        name=name,
        title=title,
        alt=f"{title} by domain, first and last: {_ends(domains, values, '{:.1f} %')}.",
        draw=draw,
        legend=_legend(domains),
        caption=sentences(caption, _notes(records)),
    )


def draw_lines(axes, records: Sequence[Record], values: np.ndarray, errors: np.ndarray | None = None) -> None:
    """A line per domain over the steps, broken where losses are of other held-out rows than before."""
    steps, anew = np.array([record.step for record in records]), measured_anew(records)
    for domain_id, mark in enumerate(marks(values.shape[1])):
        known = np.flatnonzero(~np.isnan(values[:, domain_id]))
        known = known[thinned(len(known))] if len(known) else known
        marker = "o" if len(known) <= 40 else None
        for part in np.split(known, np.searchsorted(known, anew)):
            x, y = steps[part], values[part, domain_id]
            axes.plot(x, y, marker=marker, ms=3, **mark.of_line)
            if errors is not None:
                error = np.nan_to_num(errors[part, domain_id])
                axes.fill_between(x, y - error, y + error, color=mark.colour, alpha=0.16, lw=0)
    over_steps(axes)


def draw_references(axes, records: Sequence[Record]) -> bool:
    """The reference losses as dotted lines, where the domains are few; whether there are any."""
    references = _references(records)
    for value, colour in references:
        axes.axhline(value, color=colour, lw=0.9, ls=(0, (1, 2)))
    return bool(references)


def _references(records: Sequence[Record]) -> list[tuple[float, str]]:
    """The lines that `draw_references` draws, with their colours."""
    values = matrix(records[-1:], "reference_losses")[0]
    found = [(value, mark.colour) for value, mark in zip(values, marks(len(values)), strict=True) if value == value]
    return found if len(values) <= MAX_BANDS else []


def _notes(records: Sequence[Record]) -> str:
    """What is said of every chart with a line per domain."""
    broken = "Lines are broken where losses are of other held-out rows." if measured_anew(records) else ""
    return sentences(broken, thinning_note(len(records)))


def _legend(domains: Sequence[str]) -> dict[str, Mark]:
    return dict(zip(domains, marks(len(domains)), strict=True))


def _domains_down(axes, summary: Sequence[Mapping]) -> None:
    """Names at the left, the first domain at the top."""
    axes.set_yticks(range(len(summary)), [short(row["domain"]) for row in summary])
    axes.set_ylim(len(summary) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _ends(domains: Sequence[str], values: np.ndarray, shape: str) -> str:
    words = []
    for domain, column in zip(domains, values.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known):
            words.append(f"{domain} {shape.format(known[0])} to {shape.format(known[-1])}")
    return "; ".join(words) or "nothing was measured"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else percent(share)
