"""A small history to replay by hand, and what the tests ask of a simulation."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.tiny import write_jsonl
from versatune_plugin.cli import main
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.simulation import simulate

ROWS = {"law": 100, "code": 50}
BLOCK = {
    "strategy": "versatune",
    "initial_proportions": {"law": 0.5, "code": 0.5},
    "sigma": 1.0,
    "update_interval": 10,
    "reference_losses": {"law": 1.0, "code": 1.0},
}
# Potentials of law and code: 1/2 and 1/2 at first, 1/2 and 1/5 at step 10, 1/4 and 0 at step 20.
LOSSES = {0: (2.0, 2.0), 10: (2.0, 1.25), 20: (4 / 3, 1.0)}


def write_history(folder: Path, block=BLOCK, losses=LOSSES, signal="probe", **facts) -> Path:
    """A history of 25 steps of 4 rows, updated every 10 steps and acting 2 steps later, and not yet at its end."""
    settings = VersaTuneConfig.model_validate(block).model_dump(mode="json") if ":" not in block["strategy"] else block
    run = {"settings": settings, "num_steps": 25, "block_size": 4, "update_interval": 10, "look_ahead_steps": 2} | facts
    records = [
        {
            "step": step,
            "num_drawn": 4 * step,
            "drawn_by_domain": {"law": 2 * step, "code": 2 * step},
            "num_rows_by_domain": ROWS,
            "signal": signal,
            "losses": values and dict(zip(ROWS, values, strict=True)),
            "proportions_before": {"law": 0.5, "code": 0.5},
            "proportions": {"law": 0.5, "code": 0.5},
            "run": None if step else run,
        }
        for step, values in losses.items()
    ]
    return write_jsonl(folder / "versatune" / "history.jsonl", records)


def proportions(outcome) -> list:
    """Of each record, in domain order."""
    return [list(record.proportions.values()) for record in outcome.records]


def variants_of(source: Path, *tries: str) -> list[list]:
    """Proportions of the block as it is and of each variant."""
    return [proportions(outcome) for outcome in simulate(source, tries).outcomes]


def refusal(source: Path, *tries: str) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        simulate(source, tries)
    return str(caught.value)


def run_cli(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["simulate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
