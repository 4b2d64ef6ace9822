"""What every saved state is checked for before anything is taken over from it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_IN_WORDS = {
    "num_rows_by_domain": "training rows per domain",
    "cost_by_domain": "tokens per domain",
    "block_size": "rows per optimizer step: batch size, accumulation and processes together",
    "num_samples": "rows per epoch",
    "capacity": "tokens of a packed row",
    "bins_per_batch": "packed rows per batch",
    "batches_per_step": "batches per optimizer step: accumulation and processes together",
    "max_rows_per_bin": "sample_packing_bin_size",
    "sequential": "sample_packing_sequentially",
}


def check_state(state: Any, what: str, version: int, keys: Iterable[str]) -> None:
    """Check that a saved state is one, of this release, with all its keys.

    Args:
        state: As it was saved, or as it came back from JSON.
        what: Whose state it is, for the error text.
        version: The one that this release reads.
        keys: All that it must have.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} state must be a mapping, got {type(state).__name__}")
    if state.get("version") != version:
        raise ValueError(f"{what} state has version {state.get('version')}, this release reads {version}")
    missing = [repr(key) for key in keys if key not in state]
    if missing:
        raise ValueError(f"{what} state is damaged: it lacks {', '.join(missing)}")


def check_same(saved: Mapping, here: Mapping, what: str) -> None:
    """Check that a state was saved under the settings of this run.

    Args:
        saved: The saved state.
        here: The settings of this run, each of which the state has.
        what: What is to go on, for the error text.

    Raises:
        ValueError: It was not; all settings that differ are named.
    """
    differences = [
        f"{name} was {saved[name]}, is now {value}" + (f" ({_IN_WORDS[name]})" if name in _IN_WORDS else "")
        for name, value in here.items()
        if not np.array_equal(saved[name], value)
    ]
    if differences:
        raise ValueError(
            f"the saved {what} cannot go on in this run: {'; '.join(differences)}. Give the run what it had, or start "
            "a new one from the checkpoint's weights"
        )
