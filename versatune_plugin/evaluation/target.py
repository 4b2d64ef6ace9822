"""What is evaluated: a model or an adapter, in a folder (a run's, a checkpoint) or on a hub."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from versatune_plugin.files.fingerprints import model_fingerprint

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Target:
    """A model as the harness loads it."""

    name: str
    """As the user named it."""
    base: str
    """Folder or hub name of the model, or of the one that the adapter is for."""
    adapter: str | None = None
    """Folder of a PEFT adapter."""
    tokenizer: str | None = None
    """Folder of the adapter's own tokenizer; None: the base model's."""

    @property
    def folder(self) -> Path | None:
        """Where it lies; None on a hub."""
        path = Path(self.name)
        return path if path.is_dir() else None

    @property
    def step(self) -> int | None:
        """The optimizer step, of a checkpoint."""
        found = re.fullmatch(r"checkpoint-(\d+)", Path(self.name).resolve().name)
        return int(found[1]) if found else None

    def fingerprint(self) -> str | None:
        """Changes with the weights; None for a hub model that is not in the cache."""
        parts = [model_fingerprint(name) for name in (self.base, self.adapter) if name]
        return "+".join(parts) if None not in parts else None

    def description(self) -> dict:
        """For the document: name, fingerprint, and the base model of an adapter."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "base_model": self.base if self.adapter else None,
        }


def find_target(name: str, base: str | None = None) -> Target:
    """The model that a user means.

    Args:
        name: A folder with a model or an adapter (a run's output_dir, a checkpoint), or a model's name on a hub.
        base: The model that an adapter is for, where its own record of it does not lead there.

    Raises:
        ValueError: There is no such folder, it holds no model, or the adapter's base model is not found.
    """
    path = Path(name)
    if not path.is_dir():
        if base is not None:
            raise ValueError(f"--base is for the folder of an adapter, and there is no folder {name}")
        if path.exists() or not _may_be_on_a_hub(name):
            raise ValueError(f"{name} is neither a folder nor the name of a model on a hub")
        return Target(name, base=name)
    if (path / ADAPTER_FILE).is_file():
        own_tokenizer = (path / "tokenizer_config.json").is_file()
        return Target(name, base or _base_of(path), adapter=name, tokenizer=name if own_tokenizer else None)
    if base is not None:
        raise ValueError(f"--base is for the folder of an adapter, and {name} has no {ADAPTER_FILE}")
    if not (path / "config.json").is_file() or (not any(path.glob("*.safetensors")) and not any(path.glob("*.bin"))):
        raise ValueError(f"{name} holds no model{_checkpoints_in(path)}")
    return Target(name, base=name)


def _may_be_on_a_hub(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _base_of(adapter: Path) -> str:
    """What the adapter's record names: a path is seen from the folder where training was started."""
    recorded = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    remedy = "; name it with --base"
    if not recorded:
        raise ValueError(f"{adapter / ADAPTER_FILE} does not say which model the adapter is for{remedy}")
    started_from = [*adapter.resolve().parents[:2], Path.cwd()]  # a run's folder lies beside its YAML, as a rule
    found = list(
        dict.fromkeys(str((folder / recorded).resolve()) for folder in started_from if _has_config(folder / recorded))
    )
    if len(found) > 1:
        raise ValueError(f"{adapter}: its base model {recorded!r} may be any of {', '.join(found)}{remedy}")
    if not found and not _may_be_on_a_hub(recorded):
        raise ValueError(f"{adapter}: its base model {recorded!r} is not there{remedy}")
    return found[0] if found else recorded


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _checkpoints_in(path: Path) -> str:
    found = sorted(path.glob("checkpoint-*"), key=lambda folder: (len(folder.name), folder.name))
    return f"; the run there has not finished; its newest checkpoint is {found[-1]}" if found else ""
