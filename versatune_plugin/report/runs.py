"""The runs that a report is about: what can be read of each, and what cannot."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from versatune_plugin.documents import read_document
from versatune_plugin.history import history_path, read_what_is_readable


@dataclass(frozen=True, kw_only=True)
class Run:
    """What an output directory holds: a history, evaluations, or both."""

    name: str
    """As it is shown; unique among the runs of a report."""
    folder: Path
    records: Sequence[dict] = ()
    """The readable lines of its history, oldest first."""
    problem: str | None = None
    """What of the history or of an evaluation could not be read, and where."""
    evaluations: Mapping[int | None, dict] = field(default_factory=dict)
    """Documents of `versatune evaluate` by optimizer step; None: of the finished model."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, in the order of the history, or of the evaluations where there is none."""
        if self.records:
            return tuple(self.records[0]["proportions"])
        return tuple(dict.fromkeys(domain for document in self.evaluations.values() for domain in document["domains"]))

    @property
    def facts(self) -> Mapping:
        """What the history's first line says of the run as a whole; empty in those of older releases."""
        return (self.records[0].get("run") or {}) if self.records else {}


def load_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """What can be read of these output directories, in their order.

    Raises:
        ValueError: A folder is given twice.
        OSError: A history or an evaluation is there, but cannot be read.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ValueError(f"{folders[number]} is given twice: each run can be shown once")
    names = _shortest_names(paths)
    return [_load(Path(folder), name) for folder, name in zip(folders, names, strict=True)]


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _load(folder: Path, name: str) -> Run:
    records, problem = read_what_is_readable(history_path(folder))
    evaluations, problems = {}, [problem] if problem else []
    for step, path in _evaluation_files(folder):
        try:
            evaluations[step] = _checked(read_document(path, "versatune/evaluation"), path)
        except ValueError as error:
            problems.append(str(error))
    return Run(name=name, folder=folder, records=records, problem="\n".join(problems) or None, evaluations=evaluations)


def _evaluation_files(folder: Path) -> list[tuple[int | None, Path]]:
    """Evaluations by the step of their checkpoint, ascending; that of the finished model last, with None."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        number = checkpoint.name.removeprefix("checkpoint-")
        if number.isdecimal():
            found.append((int(number), checkpoint / "versatune" / "evaluation.json"))
    found = [*sorted(found), (None, folder / "versatune" / "evaluation.json")]
    return [(step, path) for step, path in found if path.exists()]


def _checked(document: dict, path: Path) -> dict:
    """The document, if it has what the report shows of it."""
    domains = document.get("domains")
    if not isinstance(domains, dict) or not all(
        isinstance(measured, dict) and isinstance(measured.get("tasks"), dict) and "score" in measured
        for measured in domains.values()
    ):
        raise ValueError(f"{path} lacks the scores and tasks of its domains: evaluate again")
    return document
