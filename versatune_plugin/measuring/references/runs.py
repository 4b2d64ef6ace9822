"""The reference runs: one domain after the other, each in a folder of its own; a kill at any place spoils nothing."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import JsonValue

from versatune_plugin.files.documents import Document
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.measuring.references.document import Point, Result, best_epoch

_RUN_FILE = "run.json"
_LONGEST_NAME = 100  # characters of a folder's name before its digest
_KEPT = {_RUN_FILE, "versatune", "config.yml", "debug.log"}


class DomainTrainer(Protocol):
    """What a host brings: how the reference model is fine-tuned on one domain."""

    @property
    def domains(self) -> Sequence[str]:
        """Names in their order."""

    def identity(self, domain: str) -> dict:
        """As plain JSON, all that the losses of a domain's run depend on."""

    def train(self, domain: str, folder: Path) -> None:
        """Train a domain in its folder, from a checkpoint there if there is one, and leave its `history.jsonl`.

        All processes call it together.
        """


class RunFile(Document):
    """run.json: it makes a folder ours, and holds the result once there is one."""

    SCHEMA: ClassVar[str] = "versatune/reference-run"

    identity: dict[str, JsonValue] | None
    """What the losses depend on; None while the folder is being cleared."""
    result: Result | None


def measure(
    trainer: DomainTrainer,
    folder: Path,
    *,
    epochs: int,
    stop_when_rising: bool,
    say: Callable[[str], None],
    on_main: Callable = lambda function: function(),
) -> dict[str, Result]:
    """Run what is missing, domain after domain, and collect the results.

    A finished domain is never run again. What was killed goes on: the trainer finds the folder as it was left. A
    domain whose identity has changed starts anew.

    Args:
        trainer: Trains a domain.
        folder: Holds a folder per domain.
        epochs: Epochs per domain.
        stop_when_rising: Whether a run ends after the first epoch with a higher loss than the epoch before.
        say: Takes the progress, a line at a time.
        on_main: Calls a function in the main process alone and gives its result (or error) to all processes.

    Raises:
        RuntimeError: A run ended before its last epoch.
        ValueError: No epoch of a domain has a finite loss, or a domain's folder is somebody else's.
    """
    results = {}
    for number, domain in enumerate(trainer.domains, start=1):
        run = _Run(domain, folder / folder_name(domain), epochs, stop_when_rising, say)
        place, began = f"reference {domain} {number}/{len(trainer.domains)}", time.monotonic()
        result, is_whole = on_main(partial(run.begin, trainer, place))
        if result is None:
            if not is_whole:
                say(f"{place}: {epochs} epoch(s) in {run.where}")
                trainer.train(domain, run.where)
            result = on_main(partial(run.finish, began))
        ended = ", stopped: the loss rose" if result.stopped_early else ""
        at = best_epoch(result.curve).epoch
        say(f"{place}: loss {result.reference_loss:.4f} after epoch {at:g}, {result.seconds:.0f} s{ended}")
        results[domain] = result
    return results


@dataclass(frozen=True)
class _Run:
    """The run of one domain, as far as it is seen from outside."""

    domain: str
    where: Path
    epochs: int
    stop_when_rising: bool
    say: Callable[[str], None]

    def begin(self, trainer: DomainTrainer, place: str) -> tuple[Result | None, bool]:
        """The result of a finished run, or None; and whether the run itself is whole, so that only that is due."""
        if self.where.exists() and not _is_ours(self.where):
            raise ValueError(
                f"{self.where} is needed for a reference run, but versatune did not make it, so nothing in it was "
                "touched: move it away, or give reference_losses another file name"
            )
        path, identity = self.where / _RUN_FILE, trainer.identity(self.domain)
        known = RunFile.read(path) if path.exists() else None
        if known is not None and known.identity == identity:
            if known.result is None:
                return None, self._is_whole(self._curve())
            self.say(f"{place}: finished before")
            _delete_all_but(_KEPT, self.where)
            return known.result, True
        if known is not None:
            before = known.identity or {}
            changed = " and another ".join(key for key in identity if before.get(key) != identity[key])
            self.say(f"{place}: starts anew, for what is in {self.where} was made with another {changed}")
            _clear(self.where)
        RunFile(identity=identity, result=None).write(path)
        return None, False

    def finish(self, began: float) -> Result:
        """Read the run's history, note its result, and delete its checkpoints and model; history and log stay."""
        history, curve = history_path(self.where), self._curve()
        if not self._is_whole(curve):
            raise RuntimeError(
                f"the reference run of domain {self.domain!r} ended after epoch {curve[-1].epoch if curve else 0:g} of "
                f"{self.epochs}: what it said stands above, what it left is in {self.where}. Whatever is finished is "
                "kept: give the same command again to go on"
            )
        untrained, losses = curve[0].loss, _losses(curve[1:])
        if not losses:
            raise ValueError(
                f"the reference run of domain {self.domain!r} has no finite loss in any of its epochs ({history}): "
                "look at its rows, or lower the learning rate, and give the command again"
            )
        if untrained is not None and min(losses) > untrained:
            self.say(
                f"warning: every epoch on {self.domain!r} is worse than the untrained reference model "
                f"({min(losses):.4f} against {untrained:.4f}): a lower learning rate?"
            )
        result = Result(
            reference_loss=min(losses),
            curve=curve,
            stopped_early=curve[-1].epoch < self.epochs,
            seconds=time.monotonic() - began,
            probe=read_history(history)[0].probe[self.domain],
            data=self._training_rows(),
        )
        path = self.where / _RUN_FILE
        RunFile(identity=RunFile.read(path).identity, result=result).write(path)
        _delete_all_but(_KEPT, self.where)
        return result

    def _curve(self) -> list[Point]:
        """Loss before the first step and after every epoch; up to the first rise, where that ends a run."""
        path = history_path(self.where)
        curve: list[Point] = []
        for record in read_history(path) if path.exists() else ():
            (loss,) = record.losses.values()
            curve.append(Point(epoch=record.epoch, step=record.step, loss=loss))
            if self.stop_when_rising and _has_risen(curve):
                break
        return curve

    def _is_whole(self, curve: Sequence[Point]) -> bool:
        return bool(curve) and (curve[-1].epoch >= self.epochs or (self.stop_when_rising and _has_risen(curve)))

    def _training_rows(self) -> str | None:
        """Fingerprint of the training rows, as the run's callback saved it; None without a checkpoint."""
        for path in self.where.glob("checkpoint-*/trainer_state.json"):
            saved = json.loads(path.read_text(encoding="utf-8"))["stateful_callbacks"].get("VersaTuneCallback", {})
            if saved:
                return saved["attributes"]["fingerprints"]["training_rows"].get(self.domain)
        return None


def _losses(curve: Sequence[Point]) -> list[float]:
    return [point.loss for point in curve if point.loss is not None]


def _has_risen(curve: Sequence[Point]) -> bool:
    """Whether the last loss is above that of the epoch before it."""
    earlier, last = _losses(curve[1:-1]), curve[-1].loss
    return bool(earlier) and last is not None and last > earlier[-1]


# Their folders


def runs_folder(path: Path) -> Path:
    """Where the runs behind a references.json lie: `references.runs/` beside it."""
    return path.with_suffix(".runs")


def folder_name(domain: str) -> str:
    """A domain's folder: its name, or where that is no good file name, or a long one, a similar one of its own."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", domain)
    digest = hashlib.blake2b(domain.encode(), digest_size=4).hexdigest()
    is_good = plain == domain and len(plain) <= _LONGEST_NAME
    return plain if is_good else f"{plain[:_LONGEST_NAME].strip('-')}-{digest}"


def is_finished(path: Path, domain: str) -> bool:
    """Whether a domain's run behind a references.json has its result, whatever settings it was made with."""
    run = runs_folder(path) / folder_name(domain) / _RUN_FILE
    return run.exists() and RunFile.read(run).result is not None


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


def _is_ours(where: Path) -> bool:
    """Whether a folder is a reference run's: it has our run.json, or a kill came before that was written."""
    try:
        return f'"schema": "{RunFile.SCHEMA}"' in (where / _RUN_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {left.name for left in where.iterdir()} <= {f"{_RUN_FILE}.tmp"}


def _clear(where: Path) -> None:
    """Delete what a run left but for the file that says whose the folder is; a kill in between does no harm."""
    RunFile(identity=None, result=None).write(where / _RUN_FILE)
    _delete_all_but({_RUN_FILE}, where)


def _delete_all_but(kept: Collection[str], where: Path) -> None:
    for left in where.iterdir():
        if left.name not in kept:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
