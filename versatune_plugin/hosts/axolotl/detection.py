"""What an Axolotl YAML tells a detection: the base model, how it is loaded, and the texts of its datasets.

Axolotl itself is not imported, and rows are read with the datasets library alone, without a tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from versatune_plugin.config.block import DETECTION_FILE, VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.files.rows import split_by_column
from versatune_plugin.hosts.axolotl.config import BY_COLUMN, domain_order, read_yaml
from versatune_plugin.measuring.detection.document import DetectionDocument
from versatune_plugin.measuring.detection.models import SampledModel
from versatune_plugin.measuring.detection.run import make_detection, read_detection
from versatune_plugin.measuring.detection.texts import row_texts


def detect_from_yaml(path: Path, refresh: bool, say: Callable[[str], None]) -> tuple[DetectionDocument, Path]:
    """The detection that a YAML asks for, made unless its file is there and fits.

    Args:
        path: The Axolotl YAML.
        refresh: Make the file anew; samples and judgements in the cache are used again where they fit.
        say: Takes what the user should know, a line at a time.

    Returns:
        The document and where it lies.

    Raises:
        ValueError: Mistakes in the YAML, a file that does not fit, or a detection that came to nothing.
        OSError: Nothing can be read or written there; what is finished is kept.
    """
    cfg, config = read_yaml(path)
    file = config.detection_file or DETECTION_FILE
    base, texts = base_model_of(cfg), texts_of(cfg, config, Handover.of_config(cfg))
    if file.exists() and not refresh:
        document = read_detection(file, tuple(texts), base, lambda: texts, config.detection)
        say(f"{file} is there and fits: nothing to do (--refresh makes it anew)")
        return document, file
    return make_detection(config, file, base, texts), file


def base_model_of(cfg: Mapping) -> SampledModel:
    """The base model as an Axolotl YAML describes it: precision, quantisation, adapter."""
    options = {
        "dtype": _dtype(cfg),
        "load_in_4bit": bool(cfg.get("load_in_4bit")),
        "load_in_8bit": bool(cfg.get("load_in_8bit")),
        "adapter": cfg.get("lora_model_dir"),
        "revision": cfg.get("revision_of_model"),
        "trust_remote_code": bool(cfg.get("trust_remote_code")),
        "attn_implementation": cfg.get("attn_implementation"),
    }
    return SampledModel(cfg["base_model"], {key: value for key, value in options.items() if value})


def _dtype(cfg: Mapping) -> str:
    if cfg.get("bf16") == "auto":
        import torch

        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if cfg.get("bf16") else "float16" if cfg.get("fp16") else "float32"


def texts_of(cfg: Mapping, config: VersaTuneConfig, handover: Handover) -> dict[str, list[str]]:
    """Raw texts of the training rows per domain, in domain order."""
    found = texts_by_domain(cfg["datasets"], handover.dataset_domains, config.domain_column)
    named = domain_order(config, handover)
    return {domain: found[domain] for domain in [*named, *(name for name in found if name not in named)]}


def texts_by_domain(entries: Sequence[Mapping], domains: Sequence[str], column: str | None) -> dict[str, list[str]]:
    """Texts of all rows of each domain, in the order of the entries.

    Args:
        entries: Dataset entries of an Axolotl YAML: `path`, and as needed `name`, `split`, `data_files`, `ds_type`,
            `revision`, `trust_remote_code`, `field_...`.
        domains: The domain of each entry; `BY_COLUMN` where its rows name theirs.
        column: The column that names it.

    Raises:
        ValueError: An entry cannot be read; the message names it.
    """
    found: dict[str, list[str]] = {}
    for entry, domain in zip(entries, domains, strict=True):
        rows = read_rows(entry)
        try:
            parts = split_by_column(rows, column) if column and domain == BY_COLUMN else {domain: rows}
        except ValueError as error:
            raise ValueError(f"versatune.domain_column: {entry.get('path')}: {error}") from error
        for name, part in parts.items():
            found.setdefault(name, []).extend(row_texts(part, _named_columns(entry)))
    return found


def _named_columns(entry: Mapping) -> list[str]:
    """Columns that an entry names itself: `field_messages: ...`, or `type: {field_instruction: ...}`."""
    own_format = entry["type"] if isinstance(entry.get("type"), Mapping) else {}
    given = [*entry.items(), *own_format.items()]
    return [value for key, value in given if key.startswith("field_") and isinstance(value, str)]


def read_rows(entry: Mapping) -> Dataset:
    """The raw rows of a dataset entry: a local file or folder, a saved dataset, or a hub name.

    Raises:
        ValueError: There is nothing of that name, or it cannot be read.
    """
    path, split = entry.get("path"), entry.get("split") or "train"
    local = Path(str(path))
    try:
        if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
            rows = load_from_disk(str(local))
        elif local.is_file():
            rows = load_dataset(_kind(entry, local), data_files=str(local), split="train")
        else:
            names = ("name", "data_files", "revision", "trust_remote_code")
            options = {key: entry[key] for key in names if entry.get(key) is not None}
            rows = load_dataset(str(path), split=split, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"datasets: {path!r} cannot be read: {error}") from error
    return rows[split] if isinstance(rows, DatasetDict) else rows


def _kind(entry: Mapping, file: Path) -> str:
    """The reader of a local file: what the entry says, or what its name tells."""
    return entry.get("ds_type") or {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}.get(
        file.suffix, "json"
    )
