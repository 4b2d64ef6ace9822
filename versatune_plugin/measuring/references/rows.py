"""The rows of reference runs: how many are measured, their fingerprints, and whether two tokenizers leave the same."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.settings import interval_in_steps
from versatune_plugin.config.settings import num_probe_rows as rows_within
from versatune_plugin.files.rows import fingerprint
from versatune_plugin.measuring.probes import (
    Cost,
    choose_rows,
    describe,
    forwards_per_trained_row,
    num_measurements,
    rows_per_pass,
    same_rows,
)

SOME_ROWS = 1000
"""So many of a domain tell how long its rows are."""


def num_probe_rows(
    config: VersaTuneConfig,
    trained: Mapping[str, Sequence[int] | np.ndarray],
    heldout: Mapping[str, Sequence[int]],
    *,
    num_steps: int,
    rows_per_step: int,
    full: bool,
    device_type: str,
    eval_batch_size: int,
    seed: int,
    world_size: int,
) -> int:
    """Held-out rows per domain: the user's number, or what the main run would choose if it drew all domains alike.

    (How it will draw them is not known where its start is still to be detected.)

    Args:
        config: The block of the main run.
        trained: Sizes of some training rows per domain, in any one unit.
        heldout: Sizes of the held-out rows per domain, in the same unit.
        num_steps: Optimizer steps of the main run.
        rows_per_step: Rows of an optimizer step.
        full: Whether all parameters are trained.
        device_type: Such as ``"cuda"`` or ``"cpu"``.
        eval_batch_size: Held-out rows that fit into memory together.
        seed: Of the choice of rows.
        world_size: Number of processes.

    Raises:
        ValueError: The block asks for no held-out rows.
    """
    if config.probe.rows_per_domain == 0:
        raise ValueError("versatune.probe.rows_per_domain is 0: reference losses need held-out rows to measure")
    mean_size = float(np.mean([np.mean(sizes) for sizes in trained.values()]))
    cost = Cost(
        heldout=heldout,
        trained=num_steps * rows_per_step * mean_size * forwards_per_trained_row(full),
        num_measurements=num_measurements(num_steps, interval_in_steps(config, num_steps)),
        batch_size=rows_per_pass(device_type, eval_batch_size),
        seed=seed,
        world_size=world_size,
    )
    return rows_within(config, Measured(), cost.share)


class Rows:
    """Fingerprints of each domain's rows under one tokenizer; `data` those of the training rows.

    Args:
        train: Prepared training rows per domain.
        heldout: Prepared held-out rows per domain.
        num_rows: Held-out rows measured per domain.
        seed: Of the choice of rows.
        decode: Token numbers -> text; None leaves out what needs text.
    """

    def __init__(
        self,
        train: Mapping[str, Dataset],
        heldout: Mapping[str, Dataset],
        num_rows: int,
        seed: int,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        self._heldout, self._seed, self._decode = heldout, seed, decode
        self.data = {domain: fingerprint(rows) for domain, rows in train.items()}
        self.probe = self.of_size(num_rows)

    def of_size(self, num_rows: int) -> dict[str, dict]:
        """What the probe of each domain consists of with so many rows."""
        return {domain: describe(self._chosen(domain, num_rows), self._decode) for domain in self.data}

    @property
    def texts(self) -> list[str]:
        """Texts of some held-out rows of every domain."""
        decode = self._decode
        assert decode is not None
        return [decode(row["input_ids"]) for domain in self.data for row in self._chosen(domain, 16)]

    def _chosen(self, domain: str, num_rows: int) -> Dataset:
        rows = self._heldout[domain]
        return rows.select(choose_rows(len(rows), num_rows, self._seed))


def check_same_rows(main: Mapping[str, dict], reference: Mapping[str, dict], model: str, limit: str, cut: str) -> None:
    """Make sure that the reference runs measure the held-out rows of the main run, whatever their tokenizers.

    Args:
        main: Description of each domain's probe in the main run (see `probes.describe`).
        reference: The same in the reference runs.
        model: The reference model.
        limit: The host's name of the limit on lengths, and its value.
        cut: What becomes of longer rows.

    Raises:
        ValueError: They do not; with the domains.
    """
    others = [domain for domain in main if not same_rows(main[domain], reference[domain])]
    if others:
        raise ValueError(
            f"versatune.reference: under the tokenizer of {model} the held-out rows of "
            f"{', '.join(map(repr, others))} are not those of the main run: rows too long for {limit} {cut} under one "
            f"tokenizer, or the chat templates differ; raise {limit.partition(' ')[0]}, give both one chat template, "
            "or take a reference model of the same tokenizer family"
        )
