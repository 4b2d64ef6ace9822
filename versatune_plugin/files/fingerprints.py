"""Digests that tell a model or the texts of a domain from changed ones of the same name."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

SMALL_FILES = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
PIECE_BYTES = 64 * 1024
NUM_PIECES = 64


def model_fingerprint(name: str, revision: str | None = None) -> str | None:
    """What tells this model, or this adapter, from a re-trained one of the same name; no network.

    Of a folder: a digest of its config and tokenizer, and of each weight file's name, size and 64 pieces of 64 KiB
    spread evenly through it; some seconds for 150 GB. Of a hub name: the commit in the local cache, or None where
    it is not there.
    """
    folder = Path(name)
    if folder.is_dir():
        return f"content {_digest(folder)}"
    from huggingface_hub import try_to_load_from_cache

    for file in SMALL_FILES[:2]:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return f"commit {Path(cached).parent.name}"
    return None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        is_weights = file.suffix in WEIGHT_SUFFIXES
        if not is_weights and file.name not in SMALL_FILES:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        last = max(size - PIECE_BYTES, 0)
        read_all = not is_weights or size <= NUM_PIECES * PIECE_BYTES
        with file.open("rb") as opened:
            for piece in range(1 if read_all else NUM_PIECES):
                opened.seek(last * piece // (NUM_PIECES - 1))
                digest.update(opened.read(size if read_all else PIECE_BYTES))
    return digest.hexdigest()[:32]


def texts_fingerprint(texts: Sequence[str]) -> str:
    """A digest of texts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
