"""The runs that a report is about: what can be read of each, and what cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Run:
    """What an output directory holds: a history, evaluations, or both."""

    name: str
    """As it is shown; unique among the runs of a report."""
    folder: Path
    records: Sequence[dict] = ()
    """The readable lines of its history, oldest first."""
    problem: str | None = None
    """What of the history could not be read, and where."""
    evaluations: Mapping[int | None, dict] = field(default_factory=dict)
    """Documents of `versatune evaluate` by optimizer step; None: of the finished model."""
