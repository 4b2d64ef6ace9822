"""What is seen of the mixture while a run trains: a line at the host's progress bar, and charts in trackers."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers import Trainer
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

PREFIX = "versatune/"
"""Of every key that is sent to the trackers: `versatune/<quantity>/<domain>`."""
QUANTITIES = {
    "proportion": "proportions",
    "realised_share": "realised shares since the update before",
    "loss": "losses",
    "potential": "learnable potential",
}
"""What is tracked of each domain, with the title of its chart."""

_BESIDE = 48  # characters of a bar without its postfix, up to some 100,000 steps and 10 hours
_FEWEST = 32  # characters of the mixture: both fit 80 columns
_NAMES = (16, 12, 8, 6, 5, 4, 3)  # characters to which names may be cut so that all domains are shown
_LONGER_NAMES = _NAMES[:4]  # where they are not


class MixtureProgress(ProgressCallback):
    """The host's progress bar with the current mixture; our numbers for the trackers are not printed."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the mixture where it was logged; print what else is logged as the host does."""
        if not _is_ours(logs):
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif self.training_bar is not None:
            width = self.training_bar.format_dict["ncols"] or 0
            line = short_mixture(_proportions(logs), max(_FEWEST, width - _BESIDE))
            self.training_bar.set_postfix_str(line, refresh=False)  # drawn again with the next step or log line


class QuietPrinter(PrinterCallback):
    """The host's printing without a bar; our numbers for the trackers are not printed."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print what the host logs: our own log line has said what there is to our numbers."""
        if not _is_ours(logs):
            super().on_log(args, state, control, logs=logs, **kwargs)


def show_mixture(trainer: Trainer) -> None:
    """Put ours in the place of the host's progress bar or printer; a notebook's and a user's own stay."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is ProgressCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(MixtureProgress(callback.max_str_len))
        elif type(callback) is PrinterCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(QuietPrinter())


def short_mixture(proportions: Mapping[str, float], room: int = _FEWEST) -> str:
    """A mixture in one line: `law 0.31 med 0.22`, names cut where room is short, or the largest domains alone.

    Args:
        proportions: By domain.
        room: Most characters, at least 16.
    """
    largest = sorted(proportions, key=proportions.get, reverse=True)
    for number in range(len(largest), 0, -1):
        shown = [domain for domain in proportions if domain in largest[:number]]
        for length in _NAMES if number == len(largest) else _LONGER_NAMES:
            names = [_cut(domain, length) for domain in shown]
            parts = [f"{name} {proportions[domain]:.2f}" for name, domain in zip(names, shown, strict=True)]
            line = " ".join(parts + ([] if number == len(largest) else [f"+{len(largest) - number} more"]))
            if len(line) <= room and len(set(names)) == number:
                return line
    return f"{len(proportions)} domains"


@contextmanager
def beside_the_bar() -> Iterator[None]:
    """Write lines to the terminal within, and no progress bar gets in their way."""
    with tqdm.external_write_mode(file=sys.stderr):
        yield


def chart_quantities(trainer: Trainer) -> None:
    """Under TensorBoard, one chart per quantity with all domains (tab "Custom Scalars"); for a run that has begun.

    Other trackers group by the names alone.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            charts = {title: ["Multiline", [f"train/{PREFIX}{name}/.*"]] for name, title in QUANTITIES.items()}
            callback.tb_writer.add_custom_scalars({"versatune": charts})


def _is_ours(logs: Mapping | None) -> bool:
    return any(key.startswith(PREFIX) for key in logs or ())


def _proportions(logs: Mapping[str, float]) -> dict[str, float]:
    start = f"{PREFIX}proportion/"
    return {key.removeprefix(start): value for key, value in logs.items() if key.startswith(start)}


def _cut(name: str, length: int) -> str:
    """A name in one line of at most so many characters."""
    return " ".join(name.split())[:length].rstrip()
