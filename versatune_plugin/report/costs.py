"""What the probes of a run cost."""

from collections.abc import Sequence

import numpy as np

from versatune_plugin.files.record import Record
from versatune_plugin.report.drawing import Mark, marks, over_steps
from versatune_plugin.report.parts import Chart, Section
from versatune_plugin.report.series import thinned, thinning_note, vector
from versatune_plugin.report.summary import facts_of, percent, plural


def cost_sentence(records: Sequence[Record]) -> str | None:
    """The probes' time, its share of the run where that is known, and what was predicted; None without probes."""
    seconds = _probe_seconds(records)
    if not len(seconds):
        return None
    said, facts = f"Probes took {_duration(seconds.sum())}", []
    share = probe_share(records)
    if share is not None:
        said += f" of {_duration(_run_seconds(records))}"
        facts.append(f"{percent(share)} of the run")
    predicted = facts_of(records).get("predicted_probe_share")
    if predicted is not None:
        facts.append(f"predicted {percent(predicted)}")
    return said + (f" ({', '.join(facts)})" if facts else "") + f", {seconds.mean():.3g} s each."


def probe_share(records: Sequence[Record]) -> float | None:
    """Share of the run's time that its probes took, in [0, 1]; None where the time is not recorded."""
    total = _run_seconds(records)
    return float(_probe_seconds(records).sum()) / total if total else None


def cost_section(records: Sequence[Record]) -> Section | None:
    """Seconds of each probe; None without probes."""
    measured = _measured(records)
    if not measured:
        return None
    steps, seconds = np.array([record.step for record in measured]), _probe_seconds(records)
    between = vector(records, "seconds")
    probe_mark, run_mark = marks(1)[0], Mark(marks(2)[1].colour, "--", "")
    has_seconds = not np.isnan(between).all()

    def draw(figure) -> None:
        axes, chosen = figure.subplots(), thinned(len(steps))
        if has_seconds:
            at, picked = np.array([record.step for record in records]), thinned(len(records))
            axes.plot(at[picked], between[picked], **run_mark.of_line)
        axes.plot(steps[chosen], seconds[chosen], marker="o" if len(chosen) <= 40 else None, ms=3, **probe_mark.of_line)
        axes.set(ylabel="seconds", ylim=(0, None))
        over_steps(axes)

    chart = Chart(
        name="probe_seconds",
        title="Time of each probe",
        alt=f"{plural(len(steps), 'probe')} took between {seconds.min():.3g} and {seconds.max():.3g} seconds."
        if len(steps) > 1
        else f"1 probe took {seconds[0]:.3g} seconds.",
        draw=draw,
        legend={"probe": probe_mark, "all since the line before": run_mark} if has_seconds else {},
        caption=thinning_note(len(records)),
    )
    return Section(title="Cost of measuring", parts=[chart])


def _measured(records: Sequence[Record]) -> list[Record]:
    """Records of probes; where training batches are measured, or nothing, the seconds are not those of a probe."""
    return [
        record for record in records if record.losses and record.probe_seconds is not None and record.signal != "train"
    ]


def _probe_seconds(records: Sequence[Record]) -> np.ndarray:
    return vector(_measured(records), "probe_seconds")


def _run_seconds(records: Sequence[Record]) -> float | None:
    """Seconds of the whole run; None where a line does not say."""
    seconds = vector(records, "seconds")
    return None if np.isnan(seconds).any() else float(seconds.sum())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
