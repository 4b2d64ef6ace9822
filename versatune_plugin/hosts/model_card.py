"""The section "Training data mixture" in the model card that the host's trainer writes."""

import html
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from versatune_plugin.config.checks import KEYS_OF_STRATEGIES
from versatune_plugin.config.sections import SELF, GuardsConfig
from versatune_plugin.files.record import Record
from versatune_plugin.files.whole import write_whole
from versatune_plugin.report.summary import acted, facts_of, proportions_at_the_end, summarise

TAG = "versatune"
_BEGIN, _END = "<!-- versatune: training data mixture -->", "<!-- versatune: end -->"
_BEFORE = "\n## Citations\n"  # of TRL's card; in a card without it the section is the last
_PAPER = "[VersaTune, arXiv 2411.11266](https://arxiv.org/abs/2411.11266)"
_UNITS = {"examples": "examples", "tokens": "tokens", "target_tokens": "target tokens"}
_LOSSES = {"probe": "on held-out rows", "train": "on the training batches"}
_STARTS = {
    "uniform": "the same for every domain",
    "proportional": "proportional to the {unit} of the domains",
    "temperature": "proportional to a root of the {unit} of the domains",
}
_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")


def write_section(path: Path, records: Sequence[Record], step_of_weights: int | None = None) -> None:
    """Put the section into a model card, in the place of the one that is there, and the tag into its metadata.

    Args:
        path: The card, as the host wrote it.
        records: The history of the run so far, oldest first, at least one record.
        step_of_weights: The optimizer step whose weights the model has, where it is another than the last one.

    Raises:
        OSError: The card cannot be read or written.
        UnicodeError: It is not UTF-8.
        yaml.YAMLError: Its metadata is not YAML.
    """
    card = ModelCard.load(path)
    given = card.data.tags or []
    tags = [given] if isinstance(given, str) else given
    card.data.tags = tags if TAG in tags else [*tags, TAG]
    card.text = _with_section(card.text, f"{_BEGIN}\n{section_of(records, step_of_weights)}\n{_END}")
    write_whole(path, str(card))


def section_of(records: Sequence[Record], step_of_weights: int | None = None) -> str:
    """The section as Markdown; arguments as for `write_section`."""
    facts = "\n".join(f"- **{name}**: {text}" for name, text in _facts(records, step_of_weights))
    return f"## Training data mixture\n\n{_table(records)}\n\n{facts}\n"


def _with_section(card: str, section: str) -> str:
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        return before + section + after
    before, heading, after = card.rpartition(_BEFORE)
    if heading:
        return f"{before.rstrip()}\n\n{section}\n{heading}{after}"
    return f"{card.rstrip()}\n\n{section}\n"


# The table


def _table(records: Sequence[Record]) -> str:
    """A row per domain; columns of which nothing is known are left out."""
    rows, first, last = summarise(records), records[0], records[-1]
    at_start = first.proportions if first.step == 0 else {}
    detected = _sources(records).get("detection") or {}
    references, in_effect = last.reference_losses or {}, proportions_at_the_end(records)
    columns = [
        ("domain", [_text(row["domain"]) for row in rows]),
        ("rows", [_number(row["rows"], ",") for row in rows]),
        ("proportion at the start", [_number(at_start.get(row["domain"])) for row in rows]),
        ("detected, 95 % interval", [_interval(detected.get("intervals"), row["domain"]) for row in rows]),
        (f"proportion at step {last.step:,}", [_number(in_effect[row["domain"]]) for row in rows]),
        ("share of examples", [_number(row["examples"]) for row in rows]),
        ("share of tokens", [_number(row["tokens"]) for row in rows]),
        ("passes", [_number(row["passes"], ".2f") for row in rows]),
        ("first loss", [_number(row["first"]) for row in rows]),
        ("last loss", [_loss(row) for row in rows]),
        ("reference loss", [_number(references.get(row["domain"])) for row in rows]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    lines = [[name for name, _ in columns], [":--", *["--:"] * (len(columns) - 1)]]
    lines += [[cell or "-" for cell in line] for line in zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _loss(row: Mapping) -> str:
    return _number(row["last"]) + (f" ± {row['error']:.3f}" if row["error"] is not None else "")


def _interval(intervals: Mapping | None, domain: str) -> str:
    return "" if not intervals else "{:.3f} to {:.3f}".format(*intervals[domain])


# The facts


def _facts(records: Sequence[Record], step_of_weights: int | None) -> Iterator[tuple[str, str]]:
    """What must be known to read the table, by name; what the history does not say is left out."""
    last, run = records[-1], facts_of(records)
    settings, sources = run.get("settings") or {}, _sources(records)
    changes = len(acted(records)) - 1
    if settings:
        yield "Strategy", f"{_text(settings['strategy'])}, by versatune_plugin (after {_PAPER})"
        if target := _target(settings):
            yield "Target", target
        yield "Start", _start(*_beginning(records))
    yield (
        "Proportions",
        f"of the {_UNITS[last.unit or 'examples']} drawn, changed {changes} time(s)"
        + (f"; an update every {run['update_interval']} optimizer step(s)" if run else ""),
    )
    if measured := next((record for record in reversed(records) if _is_measured(record)), None):
        unit = "byte of target text" if last.loss_unit == "byte" else "target token"
        errors = ", ± standard error" if last.loss_errors else ""
        yield "Losses", f"{_LOSSES[last.signal or 'probe']}, in nats per {unit}{errors}"
        if measured.step != last.step:
            yield "Last losses", f"those of step {measured.step:,}; no later one could be used"
    if last.reference_losses and settings:
        yield "Reference losses", _references(settings, sources.get("references"))
    if skipped := sum(bool(record.skipped) for record in records):
        yield "Skipped", f"{skipped} update(s), for losses that could not be used"
    if later := [record.step for record in records[1:] if record.run]:
        yield "Resumed", f"before step {later[-1]:,}, with other settings; {_newer(records)}"
    if records[0].step:
        yield "History", f"begins at step {records[0].step:,}: what was before is not known"
    steps = f" of {run['num_steps']:,}" if run and run["num_steps"] >= last.step else ""
    yield "As of", f"optimizer step {last.step:,}{steps}"
    if step_of_weights not in (None, last.step):
        yield "Weights", f"those of step {step_of_weights:,}, the best checkpoint; the table tells of the whole run"
    if versions := run.get("versions"):
        yield "Versions", ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions.items())


def _target(settings: Mapping) -> str:
    expansion = settings.get("expansion")
    if not expansion or "expansion.domain" not in KEYS_OF_STRATEGIES.get(settings["strategy"], ()):
        return ""
    targets = expansion["domain"]
    return ", ".join(map(_text, [targets] if isinstance(targets, str) else targets))


def _start(settings: Mapping, detection: Mapping | None) -> str:
    given, power = settings.get("initial_proportions"), settings.get("initial_power", 1)
    if detection:
        judge = " ".join(map(_model, detection["judge"].values()))
        words = (
            f"detected from what {_model(detection['base_model'])} writes by itself, in {detection['num_judged']:,} "
            f"texts, by {judge} ({_text(Path(detection['file']).name)})"
        )
    elif isinstance(given, str):
        unit = _UNITS[settings.get("unit", "examples")]
        words = _STARTS[given].format(unit=unit) if given in _STARTS else _text(given)
    elif settings.get("repeats"):
        words = "by a number of passes over the rows of each domain"
    else:
        words = "given as numbers" if given else "the strategy's own"
    words += "" if power == 1 else f", to the power of {power:g}"
    share = (settings.get("expansion") or {}).get("start") if _target(settings) else None
    words += f", but for the target's {share:g}" if share else ""
    bounds = {"floor", "ceiling", "max_passes"} & set(GuardsConfig(**settings.get("guards", {})).changed())
    return words + (", within the guards" if bounds else "")


def _references(settings: Mapping, source: Mapping | None) -> str:
    if source:
        return (
            f"lowest held-out loss of {_model(source['model'])}, fine-tuned for up to {source['epochs']} epoch(s) on "
            f"each domain alone ({_text(Path(source['file']).name)})"
        )
    return "the lowest that this run has reached" if settings.get("reference_losses") == SELF else "given as numbers"


def _beginning(records: Sequence[Record]) -> tuple[dict, dict | None]:
    """The settings and the detection that the run began with; where its first line is lost, the newest."""
    facts = records[0].run.model_dump(exclude_unset=True) if records[0].run else facts_of(records)
    return facts.get("settings") or {}, (facts.get("sources") or {}).get("detection")


def _newer(records: Sequence[Record]) -> str:
    """What of the facts is of the newer settings."""
    began, now = (facts["strategy"] for facts in (_beginning(records)[0], facts_of(records)["settings"]))
    before = f", before it was {_text(began)}" if began != now else ""
    return f"the strategy is the newer one{before}, the start is that of the beginning"


def _sources(records: Sequence[Record]) -> dict:
    return facts_of(records).get("sources") or {}


def _is_measured(record: Record) -> bool:
    return any(loss is not None for loss in (record.losses or {}).values()) and not record.skipped


def _model(name: str) -> str:
    """A model's name; of a folder its last part, as a card may be published."""
    return _text(Path(name).name if os.path.isabs(name) or os.path.isdir(name) else name)


def _text(given) -> str:
    """A name as Markdown shows it, letter by letter, in one line."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(str(given).split()), quote=False))
