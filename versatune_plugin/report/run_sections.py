"""The report of one run, what people ask first standing first."""

import json
from collections.abc import Iterator, Mapping, Sequence

from versatune_plugin.report import run_charts as charts
from versatune_plugin.report.costs import cost_section, cost_sentence
from versatune_plugin.report.decisions import decisions_section
from versatune_plugin.report.evaluations import evaluations_section
from versatune_plugin.report.headline import headline, verdict
from versatune_plugin.report.parts import Cell, Section, Table
from versatune_plugin.report.runs import Run
from versatune_plugin.report.summary import percent, shown, summarise


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


def _first(records: Sequence[dict], summary: Sequence[Mapping]) -> Section:
    points = headline(records, summary, cost_sentence(records))
    return Section(title="What happened", points=points, parts=[_summary_table(records, summary)])


def _summary_table(records: Sequence[dict], summary: Sequence[Mapping]) -> Table:
    header = (
        "domain",
        "rows",
        "drawn",
        "passes",
        "requested",
        "of rows",
        "of tokens",
        "first loss",
        "last loss",
        "change",
    )
    rows = [
        (
            row["domain"],
            "-" if row["rows"] is None else f"{row['rows']:,}",
            "-" if row["drawn"] is None else f"{row['drawn']:,}",
            shown(row["passes"], 2),
            shown(row["requested"]),
            shown(row["examples"]),
            shown(row["tokens"]),
            shown(row["first"]),
            shown(row["last"]),
            _change_cell(row),
        )
        for row in summary
    ]
    caption = (
        f"Requested: the mixture's mean over the run, as a share of {charts.unit_words(records)}; beside it what was "
        "trained on. Change of the loss: with one standard error, over draws of the held-out rows, where it is known; "
        "coloured beyond two."
    )
    return Table(header=header, rows=rows, caption=caption)


def _change_cell(row: Mapping) -> str | Cell:
    change, error = row["change"], row["change_error"]
    if change is None:
        return "-"
    text = percent(change, sign=True) + ("" if error is None else f" ± {100 * error:.1f}")
    tone = {"fell": "better", "rose": "worse"}.get(verdict(row))
    return text if tone is None else Cell(text, tone)


def _mixture(records: Sequence[dict], summary: Sequence[Mapping]) -> Section | None:
    """The mixture and what was drawn by it; of one domain alone the passes."""
    parts = [charts.proportions_chart(records)] if len(summary) > 1 else []
    if any(row["passes"] is not None for row in summary):
        parts.append(charts.passes_chart(summary))
    if len(summary) > 1 and any(row["requested"] is not None or row["examples"] is not None for row in summary):
        parts.append(charts.shares_chart(summary))
    return Section(title="Mixture" if len(summary) > 1 else "Data", parts=parts) if parts else None


def _losses(records: Sequence[dict]) -> Section | None:
    if not any(record.get("losses") for record in records):
        return None
    rises = (
        "percent above the last measurement" if records[0].get("signal") != "train" else "percent above the last one"
    )
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
            "How far each loss stands above the run's first measurement.",
        ),
    ]  # fmt: skip
    never = [] if derived[1] else ["No loss ever rose from one measurement to the next, as far as is known."]
    return Section(title="Losses", parts=[charts.losses_chart(records), *filter(None, derived)], text=" ".join(never))


def _configuration(run: Run) -> Section | None:
    """Settings, versions, sources and fingerprints, whatever of them the history holds."""
    facts, probe = dict(run.facts), run.records[0].get("probe") or {}
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
        if block and (rows := [(key or "-", value) for key, value in _flat(block)])
    ]
    if probe and all(isinstance(facts, dict) for facts in probe.values()):
        keys = list(dict.fromkeys(key for facts in probe.values() for key in facts))
        rows = [(domain, *(str(facts.get(key, "-")) for key in keys)) for domain, facts in probe.items()]
        header = ("domain", *(key.replace("_", " ") for key in keys))
        parts.append(Table(header=header, rows=rows, caption="Held-out rows that losses are measured on"))
    return Section(title="Configuration and fingerprints", parts=parts, collapsed=True) if parts else None


def _flat(block, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys with their values."""
    if isinstance(block, dict) and block:
        for key, value in block.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, block if isinstance(block, str) else json.dumps(block, ensure_ascii=False)
