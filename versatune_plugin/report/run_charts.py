"""The charts of one run: mixture, shares, passes, losses, potential, forgetting."""

from collections.abc import Mapping, Sequence

import numpy as np

from versatune_plugin.drawing import INK, MUTED, Mark, label, marks, over_steps
from versatune_plugin.report.parts import Chart
from versatune_plugin.report.series import matrix, proportions_over_steps, thinned, thinning_note
from versatune_plugin.report.summary import percent

MAX_BANDS = 8
"""Domains up to which bands of standard errors can be told apart."""
_SHORT = 18
_UNITS = {"tokens": "tokens", "target_tokens": "target tokens"}


def unit_words(records: Sequence[dict]) -> str:
    """What the run's proportions are shares of."""
    return _UNITS.get(records[0].get("unit"), "drawn rows")


def loss_words(records: Sequence[dict]) -> str:
    """What the run's losses are of."""
    return "training loss" if records[0].get("signal") == "train" else "held-out loss"


def short(name: str) -> str:
    """A name that fits beside an axis, its middle left out where it is long."""
    return label(name if len(name) <= _SHORT else f"{name[: _SHORT // 2]}…{name[-_SHORT // 2 + 1 :]}")


def proportions_chart(records: Sequence[dict]) -> Chart:
    """The mixture, stacked, over the steps at which it acts."""
    domains = list(records[0]["proportions"])
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
        alt=f"Proportions over {records[-1]['step']:,} optimizer steps, from the first to the last: {changes}.",
        draw=draw,
        legend=dict(reversed(_legend(domains).items())),
        caption=f"Proportions of {unit_words(records)}, stacked, from the step on at which they act. "
        + thinning_note(len(stacks)),
    )


def draw_mixture(axes, records: Sequence[dict], title: str) -> None:
    """Proportions, stacked, over the optimizer steps at which they act."""
    domains = list(records[0]["proportions"])
    steps, stacks = proportions_over_steps(records)
    chosen = thinned(len(steps))
    steps, tops = steps[chosen], np.cumsum(stacks[chosen], axis=1)
    bottoms = np.hstack([np.zeros((len(tops), 1)), tops[:, :-1]])
    axes.margins(x=0)
    for domain_id, (domain, mark) in enumerate(_legend(domains).items()):
        area = (steps, bottoms[:, domain_id], tops[:, domain_id])
        axes.fill_between(*area, step="post", label=label(domain), **mark.of_area)
    axes.grid(visible=False)
    axes.set(ylabel=f"proportion of {unit_words(records)}", ylim=(0, 1), title=title)


def shares_chart(summary: Sequence[Mapping]) -> Chart:
    """Requested against realised shares per domain, in rows and in tokens."""
    kinds = {
        "requested": ("requested", Mark(MUTED, "-", "")),
        "realised, in rows": ("examples", marks(1)[0]),
        "realised, in tokens": ("tokens", Mark(marks(2)[1].colour, "-", "///")),
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
        f"{row['domain']} requested {_percent(row['requested'])}, {_percent(row['examples'])} of rows, "
        f"{_percent(row['tokens'])} of tokens"
        for row in summary
    ]
    return Chart(
        name="shares",
        title="Requested and realised",
        alt=f"Shares per domain over the whole run: {'; '.join(words)}.",
        draw=draw,
        legend={name: mark for name, (_, mark) in kinds.items()},
        caption="What the mixture asked for, averaged over the run, and what was trained on.",
    )


def passes_chart(summary: Sequence[Mapping]) -> Chart:
    """How often the run went through each domain's rows."""
    mark = marks(1)[0]

    def draw(figure) -> None:
        figure.set_size_inches(4.8, max(1.7, 0.8 + 0.27 * len(summary)))
        axes = figure.subplots()
        passes = [row["passes"] or 0 for row in summary]
        axes.barh(range(len(summary)), passes, 0.62, **mark.of_area)
        for row, number in enumerate(passes):
            axes.text(number, row, f" {number:.2f}", va="center", ha="left")
        if max(passes) > 0.7:
            axes.axvline(1, color=INK, lw=0.8, ls=":")
        _domains_down(axes, summary)
        axes.set(xlabel="passes over the domain's rows", xlim=(0, 1.18 * max(*passes, 0.01)))

    words = [f"{row['domain']} {row['passes']:.2f}" for row in summary if row["passes"] is not None]
    return Chart(
        name="passes",
        title="Passes over the data",
        alt=f"Passes over each domain's rows: {', '.join(words)}.",
        draw=draw,
        legend={},
        caption="Drawn rows by the domain's rows; above 1 (dotted) rows were seen again.",
    )


def losses_chart(records: Sequence[dict]) -> Chart:
    """Measured losses with their standard errors, and the reference losses, dotted."""
    losses, errors = matrix(records, "losses"), matrix(records, "loss_errors")
    reference = matrix(records[-1:], "reference_losses")[0]
    domains = list(records[0]["proportions"])
    has_bands = len(domains) <= MAX_BANDS and not np.isnan(errors).all()

    def draw(figure) -> None:
        axes = _draw_lines(figure, records, losses, errors if has_bands else None)
        for value, mark in zip(reference, _legend(domains).values(), strict=True):
            if not np.isnan(value):
                axes.axhline(value, color=mark.colour, lw=0.9, ls=(0, (1, 2)))
        axes.set(ylabel=f"nats per {'byte' if records[0].get('loss_unit') == 'byte' else 'target token'}")

    notes = ["Bands: one standard error over draws of the held-out rows."] if has_bands else []
    notes += [] if np.isnan(reference).all() else ["Dotted: reference losses."]
    return Chart(
        name="losses",
        title=loss_words(records).capitalize(),
        alt=f"{loss_words(records).capitalize()} by domain, first and last: {_ends(domains, losses, '{:.3f}')}.",
        draw=draw,
        legend=_legend(domains),
        caption=" ".join([*notes, thinning_note(len(records))]).strip(),
    )


def signal_chart(records: Sequence[dict], key: str, name: str, title: str, axis: str, caption: str) -> Chart | None:
    """Something that was derived from the losses, in percent over steps; None where it is never known, or always 0."""
    values, domains = 100 * matrix(records, key), list(records[0]["proportions"])
    if not (np.abs(np.nan_to_num(values)) > 0).any():
        return None
    return Chart(
        name=name,
        title=title,
        alt=f"{title} by domain, first and last: {_ends(domains, values, '{:.1f} %')}.",
        draw=lambda figure: _draw_lines(figure, records, values).set(ylabel=axis),
        legend=_legend(domains),
        caption=" ".join([caption, thinning_note(len(records))]).strip(),
    )


def _draw_lines(figure, records: Sequence[dict], values: np.ndarray, errors: np.ndarray | None = None):
    """A line per domain over the steps; returns the axes."""
    axes, steps = figure.subplots(), np.array([record["step"] for record in records])
    for domain_id, mark in enumerate(marks(values.shape[1])):
        known = np.flatnonzero(~np.isnan(values[:, domain_id]))
        known = known[thinned(len(known))] if len(known) else known
        x, y = steps[known], values[known, domain_id]
        axes.plot(x, y, marker="o" if len(known) <= 40 else None, ms=3, **mark.of_line)
        if errors is not None:
            error = np.nan_to_num(errors[known, domain_id])
            axes.fill_between(x, y - error, y + error, color=mark.colour, alpha=0.16, lw=0)
    over_steps(axes)
    return axes


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
