"""detection.json: what was detected, of which model, by which judge; and whether that fits a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from versatune_plugin.domains import misfits
from versatune_plugin.files.documents import Document, Part
from versatune_plugin.measuring.detection.statistics import Count, Summary


class ModelDescription(Part):
    """A model and what tells it from others of that name."""

    name: str
    fingerprint: str | None
    """None where it is not known."""


class DetectionSettings(Part):
    """The arguments of `detect`."""

    num_samples: int
    """Per iteration."""
    iterations: int
    count: Count
    tolerance: float | None
    seed: int


class Detection(Summary):
    """What `detect` has found."""

    created: str
    """UTC, ISO 8601."""
    seconds: dict[str, float]
    """By part: `generation`, `judging`, `total`."""
    model: dict
    """The identity of the generator."""
    judge: dict
    """The identity of the judge."""
    judge_report: dict
    domains: list[str]
    settings: DetectionSettings
    stopped_early: bool
    data: dict[str, str]
    """Fingerprint of the texts of each domain that the judge was fitted on; empty where it was not fitted."""

    @property
    def judge_name(self) -> dict[str, str]:
        """What the judge is called: its kind, and its name or model where it has one."""
        return {key: self.judge[key] for key in ("kind", "name", "model") if self.judge.get(key)}


class DetectionDocument(Detection, Document):
    """A detection as it lies in its file."""

    SCHEMA: ClassVar[str] = "versatune/detection"

    base_model: ModelDescription
    start: str
    """A sentence on the token that samples start from."""
    asked: dict
    """The settings that it depends on, by their keys below `detection:`."""

    def source(self, file: Path) -> dict:
        """What a history keeps of the detection that its run started from."""
        return {
            "file": str(file),
            "base_model": self.base_model.name,
            "judge": self.judge_name,
            "num_samples": self.num_samples,
            "num_judged": self.num_judged,
            "count": self.count,
            "intervals": self.intervals,
            "seconds": self.seconds["total"],
        }

    def check_fits(
        self,
        *,
        path: str | os.PathLike,
        domains: Sequence[str],
        model: ModelDescription,
        data_fingerprints: Mapping[str, str] | None = None,
        remedy: str,
    ) -> None:
        """Refuse a detection of other domains, of another model, or of data that has changed since.

        Args:
            path: Where it was read from, for the message.
            domains: The domains of the run that wants to use it, in any order.
            model: The run's model; where either side has no fingerprint, the names are compared.
            data_fingerprints: Of the run's data, by domain; compared for the domains that both sides have.
            remedy: What to do about it, for the message.

        Raises:
            ValueError: What does not fit, all of it together, and how to make it fit.
        """
        problems = misfits(self.domains, domains, str(path))
        measured = self.base_model
        known = measured.fingerprint and model.fingerprint
        if (measured.fingerprint != model.fingerprint) if known else (measured.name != model.name):
            was, now = (f"{given.name}, fingerprint {given.fingerprint}" for given in (measured, model))
            problems.append(f"{path} was measured on a different model ({was}; this one: {now})")
        changed = [
            domain
            for domain, fingerprint in (data_fingerprints or {}).items()
            if self.data.get(domain, fingerprint) != fingerprint
        ]
        if changed:
            problems.append(f"the data of {', '.join(map(repr, changed))} has changed since {path} was measured")
        if problems:
            raise ValueError(f"{'; '.join(problems)}. {remedy}")
