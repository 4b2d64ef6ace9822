"""The runs that a report is about: what can be read of each, and what cannot."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from versatune_plugin.evaluation.results import Evaluation
from versatune_plugin.files.history import history_path
from versatune_plugin.files.record import Record
from versatune_plugin.report.drawing import visible
from versatune_plugin.report.summary import facts_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """What an output directory holds: a history, evaluations, or both."""

    name: str
    """As it is shown; unique among the runs of a report."""
    folder: Path
    records: Sequence[Record] = ()
    """The readable lines of its history, oldest first."""
    problem: str | None = None
    """What of the history or of an evaluation could not be read, and where."""
    evaluations: Mapping[int | None, Evaluation] = field(default_factory=dict)
    """Documents of `versatune evaluate` by optimizer step; None: of the finished model."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, in the order of the history, or of the evaluations where there is none."""
        if self.records:
            return tuple(self.records[0].proportions)
        return tuple(dict.fromkeys(domain for document in self.evaluations.values() for domain in document.domains))

    @property
    def facts(self) -> Mapping:
        """What the history says of the run as a whole; empty where no line tells."""
        return facts_of(self.records)


def load_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """What can be read of these output directories, in their order.

    Raises:
        ValueError: A folder is given twice.
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
        names = [visible("/".join(path.parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _load(folder: Path, name: str) -> Run:
    from versatune_plugin.report.readable import read_evaluation, read_what_is_readable

    path = history_path(folder)
    records: list[Record] = []
    evaluations: dict[int | None, Evaluation] = {}
    problems: list[str] = []
    try:
        records, problem = read_what_is_readable(path)
        problems += [problem] if problem else []
    except OSError as error:
        problems.append(f"{path} cannot be read: {error}")
    for step, path in _evaluation_files(folder):
        try:
            evaluations[step] = read_evaluation(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(str(error))
    problem = "\n".join(map(visible, problems)) or None
    return Run(name=name, folder=folder, records=records, problem=problem, evaluations=evaluations)


def _evaluation_files(folder: Path) -> list[tuple[int | None, Path]]:
    """Evaluations by the step of their checkpoint, ascending; that of the finished model last, with None."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        number = checkpoint.name.removeprefix("checkpoint-")
        if number.isdecimal():
            found.append((int(number), checkpoint / "versatune" / "evaluation.json"))
    return [*sorted(found), (None, folder / "versatune" / "evaluation.json")]


def flat(block: Mapping, whole: Sequence[str] = (), prefix: str = "") -> dict:
    """Nested settings by their dotted names.

    Args:
        block: Settings; a value may be settings again.
        whole: Names of those that are left as they are.
        prefix: Of the names.
    """
    values: dict = {}
    for key, value in block.items():
        name = f"{prefix}{key or '-'}"
        is_block = isinstance(value, Mapping) and value and name not in whole
        values |= flat(value, whole, f"{name}.") if is_block else {name: value}
    return values
