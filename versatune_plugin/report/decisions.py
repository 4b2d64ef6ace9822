"""What a strategy and the guards decided at which update: a time line, and a table of what stands out."""

from collections.abc import Mapping, Sequence

import numpy as np

from versatune_plugin.files.record import Record, Test
from versatune_plugin.report.drawing import INK, Mark, marks, over_steps
from versatune_plugin.report.parts import Chart, Section, Table
from versatune_plugin.report.series import MAX_POINTS, thinned, thinning_note
from versatune_plugin.report.summary import plural, shown

MAX_ROWS = 50
"""Updates in the table, at the most."""

_KINDS: Mapping = {
    "change decided": lambda record: _change(record)[1] > 0,
    "target raised": lambda record: record.expanded is True,
    "target not raised": lambda record: record.expanded is False,
    "held by guards": lambda record: record.proposed is not None,
    "update skipped": lambda record: bool(record.skipped),
}


def decisions_section(records: Sequence[Record]) -> Section | None:
    """The decisions of a run; None where nothing was decided."""
    noted = [record for record in records if record.note or any(kind(record) for kind in _KINDS.values())]
    if not noted:
        return None
    steps_by_kind = {kind: [record.step for record in noted if happened(record)] for kind, happened in _KINDS.items()}
    steps_by_kind = {kind: steps for kind, steps in steps_by_kind.items() if steps}
    parts: list[Table | Chart] = [_time_line(steps_by_kind, records[-1].step)] if steps_by_kind else []
    tested = [record for record in records if record.test]
    parts += [_test_chart(tested)] if tested else []
    parts.append(_table(noted))
    return Section(title="Decisions", parts=parts, text=_text(tested))


def _text(tested: Sequence[Record]) -> str:
    text = "What the strategy decided at each update, and where guards or unusable losses stood in its way."
    if tested:
        text += (
            " The expansion rule weighs the others' forgetting against epsilon times the potential of its target; what "
            "it made of it is said at each update."
        )
    return text


def _time_line(steps_by_kind: Mapping[str, Sequence[int]], last_step: int) -> Chart:
    marks_per_kind = {kind: _spread(steps, last_step) for kind, steps in steps_by_kind.items()}

    def draw(figure) -> None:
        figure.set_size_inches(4.8, 0.9 + 0.36 * len(steps_by_kind))
        axes = figure.subplots()
        for row, (kind, steps) in enumerate(marks_per_kind.items()):
            colour = marks(6)[5 if kind in ("held by guards", "update skipped") else 0].colour
            x = np.repeat(np.asarray(steps, dtype=float), 3)
            y = np.tile([row - 0.28, row + 0.28, np.nan], len(steps))
            axes.plot(x, y, color=colour, lw=1.6 if len(steps) < 100 else 0.8)
        axes.set_yticks(
            range(len(steps_by_kind)), [f"{kind} ({len(steps):,})" for kind, steps in steps_by_kind.items()]
        )
        axes.set(ylim=(len(steps_by_kind) - 0.5, -0.5), xlim=_room(last_step))
        over_steps(axes)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    counted = ", ".join(f"{kind} {plural(len(steps), 'time')}" for kind, steps in steps_by_kind.items())
    dense = any(len(marks_per_kind[kind]) < len(steps) for kind, steps in steps_by_kind.items())
    return Chart(
        name="decisions",
        title="What happened at which update",
        alt=f"A time line of {plural(last_step, 'step')}: {counted}.",
        draw=draw,
        legend={},
        caption="Where updates lie closer than a line is wide, one line stands for several." if dense else "",
    )


def _spread(steps: Sequence[int], last_step: int) -> list[int]:
    """The steps, or where there are too many to be drawn, one of each that lie close together."""
    if len(steps) <= MAX_POINTS:
        return list(steps)
    return list({round(MAX_POINTS * step / last_step): step for step in reversed(steps)}.values())[::-1]


def _room(last_step: int) -> tuple[float, float]:
    return -0.02 * max(last_step, 1), 1.02 * max(last_step, 1)


def _test_chart(tested: Sequence[Record]) -> Chart:
    left_mark, right_mark = marks(6)[5], Mark(marks(1)[0].colour, "--", "")
    sides = np.array([[record.test.left, record.test.right] for record in tested if record.test], dtype=float)
    steps, chosen = np.array([record.step for record in tested]), thinned(len(tested))

    def draw(figure) -> None:
        axes = figure.subplots()
        marker = "o" if len(chosen) <= 40 else None
        for side, mark in enumerate((left_mark, right_mark)):
            axes.plot(steps[chosen], sides[chosen, side], marker=marker, ms=3, **mark.of_line)
        axes.axhline(0, color=INK, lw=0.6)
        axes.set_ylabel("relative change of loss")
        over_steps(axes)

    below = int((sides[:, 0] < sides[:, 1]).sum())
    return Chart(
        name="test",
        title="The test behind each decision",
        alt=f"The others' forgetting was below epsilon times the target's potential at {below:,} of "
        f"{plural(len(tested), 'update')}.",
        draw=draw,
        legend={"forgetting of the others": left_mark, "epsilon x potential of the target": right_mark},
        caption=thinning_note(len(tested)),
    )


def _table(records: Sequence[Record]) -> Table:
    chosen = _most_telling(records)
    rows = []
    for position in chosen:
        record = records[position]
        domain, size = _change(record)
        before, test = record.proportions_before, record.test or Test()
        rows.append(
            (
                f"{record.step:,}",
                _words(record),
                f"{domain} {before[domain]:.3f} → {record.proportions[domain]:.3f}" if size > 0 else "none",
                shown(test.left, 4),
                shown(test.right, 4),
            )
        )
    has_tests = any(record.test for record in records)
    header = ("step", "decision", "largest change of a proportion", "others' forgetting", "epsilon x potential")
    left_out = len(records) - len(chosen)
    caption = f"All {len(records):,} updates with a decision." if len(records) > 1 else ""
    if left_out:
        caption = (
            f"The {len(chosen)} updates that stand out: skipped or held by guards, where the answer on the target "
            f"turned, and those with the largest changes. {left_out:,} more are left out here; history.jsonl has all."
        )
    width = 5 if has_tests else 3
    return Table(header=header[:width], rows=[row[:width] for row in rows], caption=caption, words=(1,))


def _most_telling(records: Sequence[Record]) -> list[int]:
    """Positions of the updates that the table shows, ascending: what stands out first, then the largest changes."""

    def rank(position: int) -> tuple[bool, bool, float]:
        record = records[position]
        turned = position > 0 and record.expanded != records[position - 1].expanded
        return bool(record.skipped), turned or record.proposed is not None, _change(record)[1]

    return sorted(sorted(range(len(records)), key=rank, reverse=True)[:MAX_ROWS])


def _words(record: Record) -> str:
    """What was decided, in words."""
    said = [str(record.note)] if record.note else []
    if record.skipped:
        said.append(f"skipped: {record.skipped}")
    elif not said and record.expanded is not None:
        said.append("target raised" if record.expanded else "target not raised")
    if record.proposed:
        proposed, proportions = record.proposed, record.proportions
        domain = max(proportions, key=lambda name: abs((proposed[name] or 0) - proportions[name]))
        said.append(f"held by guards: {domain} {proposed[domain] or 0:.3f} was proposed")
    return "; ".join(said) or ("change decided" if _change(record)[1] > 0 else "measured")


def _change(record: Record) -> tuple[str, float]:
    """The domain whose proportion changed most at an update, and by how much."""
    before = record.proportions_before
    domain = max(record.proportions, key=lambda name: abs(record.proportions[name] - before[name]))
    return domain, abs(record.proportions[domain] - before[domain])
