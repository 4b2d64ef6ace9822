"""The report of one run, what people ask first standing first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from versatune_plugin.files.record import Record
from versatune_plugin.report import run_charts as charts
from versatune_plugin.report.costs import cost_section, cost_sentence
from versatune_plugin.report.decisions import decisions_section
from versatune_plugin.report.drawing import NUM_MARKS
from versatune_plugin.report.evaluations import evaluations_section
from versatune_plugin.report.headline import headline, verdict
from versatune_plugin.report.parts import Cell, Section, Table
from versatune_plugin.report.runs import Run, flat
from versatune_plugin.report.series import folded, folding_note, most_changed, sentences
from versatune_plugin.report.summary import changed_most, counted, percent, shown, summarise


def run_sections(run: Run) -> list[Section]:
    """All that is known of a run; what its files do not hold is left out."""
    if not run.records:
        sections = [evaluations_section(run)]
    else:
        summary = summarise(run.records)
        sections = [
            _first(run.records, summary),
            _mixture(run.records, summary),
            _losses(run.records),
            evaluations_section(run),
            decisions_section(run.records),
            cost_section(run.records),
            _configuration(run),
        ]
    return [section for section in sections if section is not None]


def _first(records: Sequence[Record], summary: Sequence[Mapping]) -> Section:
    points = headline(records, summary, cost_sentence(records))
    return Section(title="What happened", points=points, parts=[_summary_table(records, summary)])


def _summary_table(records: Sequence[Record], summary: Sequence[Mapping]) -> Table:
    realised = charts.realised_columns(records[-1].unit)
    has_reference = any(row["reference"] is not None for row in summary)
    columns = {
        "domain": [row["domain"] for row in summary],
        "change": [_change_cell(row) for row in summary],
        "first loss": [shown(row["first"]) for row in summary],
        "last loss": [shown(row["last"]) for row in summary],
        **({"reference": [shown(row["reference"]) for row in summary]} if has_reference else {}),
        "rows": [counted(row["rows"]) for row in summary],
        "drawn": [counted(row["drawn"]) for row in summary],
        "passes": [shown(row["passes"], 2) for row in summary],
        "requested": [shown(row["requested"]) for row in summary],
        **{name: [shown(row[key]) for row in summary] for name, key in realised.items()},
    }
    caption = (
        "Change of the loss: with one standard error, over draws of the held-out rows, where it is known; coloured "
        f"beyond two. Requested: the mixture's mean over the run, as a share of {charts.unit_words(records)}; "
        "realised: what was trained on."
    )
    return Table(header=tuple(columns), rows=list(zip(*columns.values(), strict=True)), caption=caption)


def _change_cell(row: Mapping) -> str | Cell:
    change, error = row["change"], row["change_error"]
    if change is None:
        return "-"
    text = percent(change, sign=True) + ("" if error is None else f" ± {100 * error:.1f}")
    match verdict(row):
        case "fell":
            return Cell(text, "better")
        case "rose":
            return Cell(text, "worse")
    return text


def _mixture(records: Sequence[Record], summary: Sequence[Mapping]) -> Section | None:
    """The mixture and what was drawn by it; of one domain alone the passes."""
    shown_domains = changed_most(records, NUM_MARKS)
    note = folding_note(len(summary))
    has_several, summary = len(summary) > 1, [row for row in summary if row["domain"] in shown_domains]
    parts = [charts.proportions_chart(folded(records, NUM_MARKS))] if has_several else []
    if any(row["passes"] is not None for row in summary):
        parts.append(charts.passes_chart(summary))
    if has_several and any(row["requested"] is not None or row["examples"] is not None for row in summary):
        parts.append(charts.shares_chart(records, summary))
    parts = [replace(part, caption=sentences(part.caption, note)) for part in parts]
    return Section(title="Mixture" if has_several else "Data", parts=parts) if parts else None


def _losses(records: Sequence[Record]) -> Section | None:
    if not any(record.losses for record in records):
        return None
    note, records = folding_note(len(records[0].proportions)), most_changed(records, NUM_MARKS)
    rises = "percent above the last measurement" if records[0].signal != "train" else "percent above the last one"
    derived = [
        charts.signal_chart(
            records, "potential", "potential", "Learnable potential", "percent of the loss",
            "How far each loss is above its reference: what is still to be gained.",
        ),
        charts.signal_chart(
            records, "forgetting", "forgetting", "Forgetting since the last update", "percent",
            f"How far each loss rose, in {rises}.",
        ),
        charts.signal_chart(
            records, "forgetting_since_start", "forgetting_since_start", "Forgetting since the start", "percent",
            "How far each loss stands above the first measurement on the same rows.",
        ),
    ]  # fmt: skip
    drawn = [charts.losses_chart(records), *filter(None, derived)]
    return Section(title="Losses", parts=[replace(chart, caption=sentences(chart.caption, note)) for chart in drawn])


def _configuration(run: Run) -> Section | None:
    """Settings, versions, sources and fingerprints, whatever of them the history holds."""
    facts = dict(run.facts)
    probe = next((record.probe for record in reversed(run.records) if record.probe), {})
    blocks = {
        "Settings of the versatune block": facts.pop("settings", None),
        "Versions": facts.pop("versions", None),
        "Sources": facts.pop("sources", None),
        "Fingerprints of the rows": facts.pop("fingerprints", None),
        "The run": facts,
    }
    parts = [
        Table(header=("key", "value"), rows=rows, caption=title, words=(1,))
        for title, block in blocks.items()
        if block and (rows := [(key, _text(value)) for key, value in flat(block).items()])
    ]
    if probe:
        keys = list(dict.fromkeys(key for facts in probe.values() for key in facts))
        probes = [(domain, *(str(facts.get(key, "-")) for key in keys)) for domain, facts in probe.items()]
        header = ("domain", *(key.replace("_", " ") for key in keys))
        parts.append(Table(header=header, rows=probes, caption="Held-out rows that losses are measured on"))
    return Section(title="Configuration and fingerprints", parts=parts, collapsed=True) if parts else None


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
