"""What every saved state is checked for before anything is taken over from it."""

from collections.abc import Iterable, Mapping
from typing import Any


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
