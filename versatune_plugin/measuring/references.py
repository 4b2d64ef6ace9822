"""Reference losses: per domain the lowest held-out loss of a small model that was fine-tuned on it alone.

(arXiv 2411.11266, section 3.1.) How a domain is trained is the host's business and comes in as a callable; here are
the loop over the domains, which a kill at any place does not spoil, the file with the result, and its checks.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from versatune_plugin.config.measured import Measured
from versatune_plugin.files.documents import read_document, write_document
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.report.drawing import label, marks, new_figure, save_png
from versatune_plugin.tables import aligned

SCHEMA = "versatune/references"
UNITS = {"token": "nats per target token", "byte": "nats per byte"}
"""What a loss is counted in, by the `loss_unit` of a block."""

_RUN_SCHEMA = "versatune/reference-run"
_RUN_FILE = "run.json"
_KEPT = {_RUN_FILE, "versatune", "config.yml", "debug.log"}
_COMPARED = ("learning_rate", "adapter", "sequence_len", "seed")
_OF_THE_BLOCK = ("epochs", "samples_per_epoch", "stop_when_rising")
_NOT_COMPARED = ("base_model_name_or_path", "peft_version")  # of an adapter: its model, and who wrote it down


# The runs


def measure(
    domains: Sequence[str],
    run: Callable[[str, Path], None],
    folder: Path,
    identities: Mapping[str, dict],
    *,
    epochs: int,
    stop_when_rising: bool,
    say: Callable[[str], None],
    on_main: Callable = lambda function: function(),
) -> dict[str, dict]:
    """Run what is missing, domain after domain, and collect the results.

    A finished domain is never run again. What was killed goes on: `run` finds the folder as it was left. A domain
    whose identity has changed starts anew.

    Args:
        domains: Names in their order.
        run: Trains the domain in the folder given and leaves its `history.jsonl` there; goes on from a checkpoint
            in it. All processes call it together.
        folder: Holds a folder per domain.
        identities: Per domain, as plain JSON, all that its losses depend on.
        epochs: Epochs per domain.
        stop_when_rising: Whether a run ends after the first epoch with a higher loss than the epoch before.
        say: Takes the progress, a line at a time.
        on_main: Calls a function in the main process alone and gives its result (or error) to all processes.

    Returns:
        Per domain `curve`: a list of {epoch, step, loss} from before the first step on; `reference_loss`: the
        lowest of the epochs; `stopped_early`; `seconds` of the last attempt: what came before a kill is left out;
        `probe`: what it was measured on; `data`: fingerprint of its training rows, None where no checkpoint tells it.

    Raises:
        RuntimeError: A run ended before its last epoch.
        ValueError: No epoch of a domain has a finite loss, or a domain's folder is somebody else's.
    """

    results = {}
    for number, domain in enumerate(domains, start=1):
        place, where = f"reference {domain} {number}/{len(domains)}", folder / folder_name(domain)
        began = time.monotonic()
        begin = partial(_begin, where, identities[domain], epochs, stop_when_rising, place, say)
        result, whole = on_main(begin)
        if result is None:
            if not whole:
                say(f"{place}: {epochs} epoch(s) in {where}")
                run(domain, where)
            result = on_main(partial(_finish, where, domain, epochs, stop_when_rising, began, say))
        say(f"{place}: loss {result['reference_loss']:.4f} after epoch {_lowest(result)['epoch']:g}, {_time(result)}")
        results[domain] = result
    return results


def _begin(where: Path, identity: dict, epochs: int, stop_when_rising: bool, place: str, say) -> tuple:
    """The result of a finished run, or None; and whether the run itself is whole, so that only its result is due."""
    if where.exists() and not _is_ours(where):
        raise ValueError(
            f"{where} is needed for a reference run, but versatune did not make it, so nothing in it was touched: "
            "move it away, or give reference_losses another file name"
        )
    path = where / _RUN_FILE
    known = read_document(path, _RUN_SCHEMA) if path.exists() else None
    if known is not None and known["identity"] == identity:
        if known["result"] is not None:
            say(f"{place}: finished before")
            _delete_weights(where)
            return known["result"], True
        curve = _curve(where, stop_when_rising)
        return None, _is_whole(curve, epochs, stop_when_rising)
    if known is not None:
        before = known["identity"] or {}
        changed = [key for key in identity if before.get(key) != identity[key]]
        say(f"{place}: starts anew, for what is in {where} was made with another {' and another '.join(changed)}")
        _clear(where)
    write_document(path, _RUN_SCHEMA, {"identity": identity, "result": None})
    return None, False


def _finish(where: Path, domain: str, epochs: int, stop_when_rising: bool, began: float, say) -> dict:
    """Read the run's history, note its result, and delete its checkpoints and weights."""
    history = history_path(where)
    curve = _curve(where, stop_when_rising)
    if not _is_whole(curve, epochs, stop_when_rising):
        raise RuntimeError(
            f"the reference run of domain {domain!r} ended after epoch {curve[-1]['epoch'] if curve else 0:g} of "
            f"{epochs}: what it said stands above, what it left is in {where}. Whatever is finished is kept: give the "
            "same command again to go on"
        )
    losses = [point["loss"] for point in curve[1:] if point["loss"] is not None]
    if not losses:
        raise ValueError(
            f"the reference run of domain {domain!r} has no finite loss in any of its epochs ({history}): look at its "
            "rows, or lower the learning rate, and give the command again"
        )
    if curve[0]["loss"] is not None and min(losses) > curve[0]["loss"]:
        say(
            f"warning: every epoch on {domain!r} is worse than the untrained reference model "
            f"({min(losses):.4f} against {curve[0]['loss']:.4f}): a lower learning rate?"
        )
    result = {
        "reference_loss": min(losses),
        "curve": curve,
        "stopped_early": curve[-1]["epoch"] < epochs,
        "seconds": time.monotonic() - began,
        "probe": read_history(history)[0]["probe"][domain],
        "data": _training_rows(where, domain),
    }
    known = read_document(where / _RUN_FILE, _RUN_SCHEMA)
    write_document(where / _RUN_FILE, _RUN_SCHEMA, {"identity": known["identity"], "result": result})
    _delete_weights(where)
    return result


def _delete_weights(where: Path) -> None:
    """Delete a finished run's checkpoints and model; its history, YAML and log stay."""
    _delete_all_but(_KEPT, where)


def _delete_all_but(kept: Collection[str], where: Path) -> None:
    for left in where.iterdir():
        if left.name not in kept:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _clear(where: Path) -> None:
    """Delete what a run left but for the file that says whose the folder is; a kill in between does no harm."""
    write_document(where / _RUN_FILE, _RUN_SCHEMA, {"identity": None, "result": None})
    _delete_all_but({_RUN_FILE}, where)


def _is_ours(where: Path) -> bool:
    """Whether a folder is a reference run's: it has our run.json, or a kill came before that was written."""
    try:
        return f'"schema": "{_RUN_SCHEMA}"' in (where / _RUN_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {left.name for left in where.iterdir()} <= {f"{_RUN_FILE}.tmp"}


def _training_rows(where: Path, domain: str) -> str | None:
    """Fingerprint of the rows that a run was trained on, as its callback saved it; None without a checkpoint."""
    for path in where.glob("checkpoint-*/trainer_state.json"):
        saved = json.loads(path.read_text(encoding="utf-8"))["stateful_callbacks"].get("VersaTuneCallback", {})
        if saved:
            return saved["attributes"]["fingerprints"].get(f"training rows of {domain!r}")
    return None


def warn_of_warmup(steps: Mapping[str, int], warmup_steps: float, say: Callable[[str], None]) -> None:
    """Say which domains' runs are no longer than the warm-up, which fits the main run.

    Args:
        steps: Optimizer steps of each domain's run.
        warmup_steps: The host's; a number below 1 is a share of a run and fits every one.
        say: Takes the line.
    """
    short = [f"{domain} {number}" for domain, number in steps.items() if warmup_steps >= 1 and number <= warmup_steps]
    if short:
        say(
            f"warning: warmup_steps is {warmup_steps:g}, so these reference runs never reach the learning rate: "
            f"{', '.join(short)} step(s); give warmup_ratio instead, or more epochs"
        )


def _curve(where: Path, stop_when_rising: bool) -> list[dict]:
    """Loss after every epoch, the one before the first step in front; up to the first rise, where that ends a run."""
    path = history_path(where)
    records = read_history(path) if path.exists() else []
    curve: list[dict] = []
    for record in records:
        (loss,) = record["losses"].values()
        curve.append({"epoch": record["epoch"], "step": record["step"], "loss": loss})
        if stop_when_rising and _has_risen(curve):
            break
    return curve


def _lowest(result: Mapping) -> dict:
    """The epoch with the reference loss."""
    return next(point for point in result["curve"][1:] if point["loss"] == result["reference_loss"])


def _time(result: Mapping) -> str:
    return f"{result['seconds']:.0f} s" + (", stopped: the loss rose" if result["stopped_early"] else "")


def _has_risen(curve: Sequence[dict]) -> bool:
    """Whether the last loss is above that of the epoch before it."""
    earlier = [point["loss"] for point in curve[1:-1] if point["loss"] is not None]
    return bool(earlier) and curve[-1]["loss"] is not None and curve[-1]["loss"] > earlier[-1]


def _is_whole(curve: Sequence[dict], epochs: int, stop_when_rising: bool) -> bool:
    return bool(curve) and (curve[-1]["epoch"] >= epochs or (stop_when_rising and _has_risen(curve)))


def folder_name(domain: str) -> str:
    """A domain's folder: its name, or where that is no good file name a similar one of its own."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", domain)
    digest = hashlib.blake2b(domain.encode(), digest_size=4).hexdigest()
    return plain if plain == domain else f"{plain.strip('-')}-{digest}"


def runs_folder(path: Path) -> Path:
    """Where the runs behind a references.json lie: `references.runs/` beside it."""
    return path.with_suffix(".runs")


def is_finished(path: Path, domain: str) -> bool:
    """Whether a domain's run behind a references.json has its result, whatever settings it was made with."""
    run = runs_folder(path) / folder_name(domain) / _RUN_FILE
    return run.exists() and read_document(run, _RUN_SCHEMA)["result"] is not None


def forget(path: Path) -> None:
    """Delete a references.json and the runs behind it; whatever else is in their folder stays.

    Raises:
        OSError: Something cannot be deleted.
    """
    path.unlink(missing_ok=True)
    folder = runs_folder(path)
    for where in folder.iterdir() if folder.exists() else ():
        if where.is_dir() and not where.is_symlink() and _is_ours(where):
            _clear(where)
            (where / _RUN_FILE).unlink()
            where.rmdir()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


# Tokenizers


def tokenizer_difference(one, other, texts: Sequence[str]) -> str | None:
    """Why losses per token under two tokenizers cannot be compared; None where they are the same in fact.

    Args:
        one: A tokenizer with `get_vocab` and `encode`.
        other: Another one.
        texts: Real texts; both must encode them alike.
    """
    first, second = one.get_vocab(), other.get_vocab()
    if first != second:
        differing = sum(1 for token in first.keys() | second.keys() if first.get(token) != second.get(token))
        return f"their vocabularies ({len(first):,} and {len(second):,} tokens) differ in {differing:,} tokens"
    for text in texts:
        if one.encode(text, add_special_tokens=False) != other.encode(text, add_special_tokens=False):
            return f"they split {text[:60]!r} into other tokens"
    return None


# The file


def write(
    path: Path,
    results: Mapping[str, dict],
    *,
    base_model: Mapping,
    reference_model: Mapping,
    difference: str | None,
    settings: Mapping,
    rows_per_domain: int,
    probe: Mapping[str, dict],
    data: Mapping[str, str],
) -> dict:
    """Write a references.json and the plot of its curves beside it.

    Args:
        path: The file.
        results: As `measure` returns them.
        base_model: `name` and `fingerprint` of the model to be trained.
        reference_model: The same of the reference model.
        difference: Why the two have another tokenizer; None where they share one.
        settings: What the runs were made with: epochs, learning rate, ...
        rows_per_domain: Held-out rows asked for.
        probe: What each domain's losses are measured on in the main run (see `probes.describe`).
        data: Fingerprint of each domain's training rows in the main run.

    Returns:
        The document. Its `seconds` and `seconds_by_domain` are those of the last attempt at each domain.
    """
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": sum(result["seconds"] for result in results.values()),
        "seconds_by_domain": {domain: result["seconds"] for domain, result in results.items()},
        "base_model": dict(base_model),
        "reference_model": dict(reference_model),
        "tokenizer": {"same": difference is None, "reason": difference},
        "unit": UNITS["token" if difference is None else "byte"],
        "domains": list(results),
        "reference_losses": {domain: result["reference_loss"] for domain, result in results.items()},
        "curves": {domain: result["curve"] for domain, result in results.items()},
        "stopped_early": {domain: result["stopped_early"] for domain, result in results.items()},
        "settings": dict(settings),
        "probe": {"rows_per_domain": rows_per_domain, "domains": dict(probe)},
        "data": dict(data),
    }
    write_document(path, SCHEMA, document)
    return document


def read(path: Path) -> dict:
    """The document in a references.json.

    Raises:
        ValueError: It is another document, or lacks something; the message names it.
    """
    document = read_document(path, SCHEMA)
    keys = ("base_model", "reference_model", "unit", "domains", "reference_losses", "settings", "probe", "data")
    missing = [key for key in keys if key not in document]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: was it edited? make it anew")
    if document["unit"] not in UNITS.values():
        raise ValueError(f"{path}: the unit must be one of {', '.join(UNITS.values())}, got {document['unit']!r}")
    for domain in document["domains"]:
        loss = document["reference_losses"].get(domain)
        if not isinstance(loss, int | float) or not math.isfinite(loss) or loss < 0:
            raise ValueError(f"{path}: the reference loss of domain {domain!r} must be at least 0, got {loss!r}")
    return document


def misfits(
    document: Mapping,
    domains: Sequence[str],
    base_model: Mapping,
    reference: Mapping | None,
    rows_per_domain: int | None,
    settings: Mapping | None = None,
) -> list[str]:
    """What in a references.json is of another run, as far as it can be told without rows.

    Args:
        document: The file's content.
        domains: Those of the run.
        base_model: `name` and `fingerprint` of the model the run trains.
        reference: The block's `reference:` with the model's `name` and `fingerprint`; None where it has none.
        rows_per_domain: The block's number of held-out rows; None where it leaves it to us.
        settings: Learning rate, adapter, sequence length and seed of the run, as `write` took them. Compared only
            with `reference`: then the runs behind the file were made, or would be made anew, from the settings of
            this very run. A block with the file alone may use it under other ones. None compares nothing.
    """
    problems = []
    if set(document["domains"]) != set(domains):
        problems.append(f"it has the domains {_listed(document['domains'])}, this run has {_listed(domains)}")
    if not _same(base_model, document["base_model"]):
        problems.append(f"its base model is {_model(document['base_model'])}, that of this run is {_model(base_model)}")
    if reference is not None:
        if not _same(reference, document["reference_model"]):
            problems.append(
                f"its reference model is {_model(document['reference_model'])}, the block's is {_model(reference)}"
            )
        problems += [
            f"its runs had {key} {document['settings'].get(key)}, the block's `reference:` has {reference[key]}"
            for key in _OF_THE_BLOCK
            if document["settings"].get(key) != reference[key]
        ]
        problems += [
            f"its runs had {name} {old}, this run has {new} (they may differ only without `reference:` in the block)"
            for name, old, new in _differences(document["settings"], settings or {})
        ]
    asked = document["probe"]["rows_per_domain"]
    if rows_per_domain not in (None, asked):
        problems.append(f"it was measured on {asked} held-out rows per domain, the block asks for {rows_per_domain}")
    return problems


def _differences(old: Mapping, new: Mapping) -> Iterator[tuple]:
    """Name, old and new value of each setting that both know and that differs; an adapter's, one by one."""
    for name in _COMPARED:
        if name not in old or name not in new:
            continue
        one, other = old[name], new[name]
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            if one != other:
                yield name, _kind(one), _kind(other)
            continue
        for key in [key for key in one if key in other and key not in _NOT_COMPARED]:
            # PEFT puts the list in the place of `all-linear` or nothing
            found = key == "target_modules" and isinstance(one[key], list) != isinstance(other[key], list)
            if one[key] != other[key] and not found:
                yield f"{name} {key}", one[key], other[key]


def _kind(value):
    """An adapter by its kind; any other setting as it is."""
    return value["peft_type"] if isinstance(value, Mapping) else value


def row_misfits(document: Mapping, data: Mapping[str, str], probe: Mapping[str, dict]) -> list[str]:
    """Domains whose training or held-out rows are not those that a references.json was made with.

    Args:
        document: The file's content.
        data: Fingerprint of each domain's training rows.
        probe: Description of each domain's held-out rows that are measured.
    """
    measured = document["probe"]["domains"]
    problems = [
        f"the training rows of {domain!r} are others" for domain in data if document["data"].get(domain) != data[domain]
    ]
    return problems + [
        f"the measured held-out rows of {domain!r} are others (another file, seed, split or masking of prompts)"
        for domain in probe
        if measured.get(domain, {}).get("fingerprint") != probe[domain]["fingerprint"]
    ]


def refuse(path: str | os.PathLike, document: Mapping, problems: Sequence[str], remedy: str) -> None:
    """Stop where a references.json does not fit.

    Raises:
        ValueError: There is a problem; with a line for each and the way out.
    """
    if not problems:
        return
    lines = [f"versatune.reference_losses: {path} does not fit this run:", *problems, f"what to do: {remedy}"]
    if document["unit"] == UNITS["token"]:
        numbers = ", ".join(f"{domain}: {loss:.6g}" for domain, loss in document["reference_losses"].items())
        lines.append(f"or, if you know that they still hold, give the numbers: reference_losses: {{{numbers}}}")
    raise ValueError("\n  ".join(lines))


def of_file(
    config,
    domains: Sequence[str],
    model,
    describe: Callable[..., dict],
    remedy: str,
    settings: Mapping | None = None,
) -> tuple[Measured, dict]:
    """Read the references.json of a `versatune:` block and check what can be told without rows.

    Args:
        config: The block.
        domains: Those of the run.
        model: The model that the run trains.
        describe: Gives `name` and `fingerprint` of a model.
        remedy: What to do where the file does not fit.
        settings: Those of the run, as its host's `settings_of` gives them; see `misfits`.

    Returns:
        The file's numbers, and the document.

    Raises:
        ValueError: The file is missing, is no references.json, or does not fit; with all reasons.
    """
    path = config.references_file
    if not path.exists():
        raise ValueError(f"versatune.reference_losses: {path} does not exist; {remedy}")
    document = read(path)
    reference = config.reference and config.reference.model_dump() | describe(config.reference.model)
    problems = misfits(document, domains, describe(model), reference, config.probe.rows_per_domain, settings)
    refuse(path, document, problems, remedy)
    return numbers_of(path, document), document


def source(path: Path, model: str, epochs: int, unit: str, seconds: float) -> dict:
    """What a history keeps of where its run's reference losses come from.

    Args:
        path: The references.json.
        model: Name of the reference model.
        epochs: Epochs per domain.
        unit: What the losses are counted in, in words.
        seconds: Of the last attempt at each domain, summed.
    """
    return {"file": str(path), "model": model, "epochs": epochs, "unit": unit, "seconds": seconds}


def numbers_of(path: Path, document: Mapping) -> Measured:
    """The losses, the unit and the number of held-out rows of a references.json."""
    (unit,) = (name for name, words in UNITS.items() if words == document["unit"])
    model, epochs = document["reference_model"]["name"], document["settings"]["epochs"]
    return Measured(
        reference_losses={domain: float(loss) for domain, loss in document["reference_losses"].items()},
        loss_unit=unit,
        probe_rows=document["probe"]["rows_per_domain"],
        sources={"references": source(path, model, epochs, document["unit"], document["seconds"])},
    )


def summary(document: Mapping, path: Path) -> str:
    """One line for the log of a run that uses the file."""
    losses = ", ".join(f"{domain} {loss:.4f}" for domain, loss in document["reference_losses"].items())
    return f"reference losses from {path} ({document['reference_model']['name']}, {document['unit']}): {losses}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))


def _same(one: Mapping, other: Mapping) -> bool:
    """Whether two models are the same: by their fingerprints, or where one has none by their names."""
    known = one["fingerprint"] and other["fingerprint"]
    return one["fingerprint"] == other["fingerprint"] if known else one["name"] == other["name"]


def _model(model: Mapping) -> str:
    return f"{model['name']} ({model['fingerprint']})"


# For people


def format_table(document: Mapping) -> str:
    """The reference losses as an aligned text table; the seconds are those of the last attempt at a domain."""
    table = [("domain", "reference loss", "at epoch", "untrained", "epochs", "seconds (last attempt)")]
    for domain in document["domains"]:
        curve, lowest = document["curves"][domain], document["reference_losses"][domain]
        at = next(point["epoch"] for point in curve[1:] if point["loss"] == lowest)
        untrained = "-" if curve[0]["loss"] is None else f"{curve[0]['loss']:.4f}"
        ended = f"{curve[-1]['epoch']:g}" + (" (rising)" if document["stopped_early"][domain] else "")
        table.append(
            (domain, f"{lowest:.4f}", f"{at:g}", untrained, ended, f"{document['seconds_by_domain'][domain]:.0f}")
        )
    return aligned(table)


def plot_curves(document: Mapping, path: str | os.PathLike) -> Path:
    """Loss over epochs, a line per domain with its lowest epoch marked, as a PNG.

    Returns:
        The path of the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for domain, mark in zip(document["domains"], marks(len(document["domains"])), strict=True):
        points = [(p["epoch"], p["loss"]) for p in document["curves"][domain] if p["loss"] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=label(domain), **mark.of_line)
        lowest = document["reference_losses"][domain]
        at = next(p["epoch"] for p in document["curves"][domain][1:] if p["loss"] == lowest)
        axes.plot([at], [lowest], marker="*", ms=13, color=mark.colour)
    axes.set(
        xlabel="epoch",
        ylabel=f"held-out loss ({document['unit']})",
        title=f"Reference losses of {label(str(document['reference_model']['name']))} (star: the lowest)",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return save_png(figure, path)


def plot_beside(path: Path, document: Mapping, say: Callable[[str], None]) -> None:
    """The plot of a references.json beside it; without matplotlib, a line that says so."""
    try:
        say(f"plot {plot_curves(document, path.with_suffix('.png'))}")
    except ImportError as error:
        say(f"no plot: {error}; pip install 'versatune_plugin[report]'")
