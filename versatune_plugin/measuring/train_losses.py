"""TrainLosses: the training loss of each domain, read off what the model returns of the batches it trains on anyway.

A batch may mix domains: the loss of each target token counts for the domain of its row. This is the cross-entropy of
the model as it trains, with its dropout, but without label smoothing and auxiliary losses.

It costs one more pass over the logits of a micro-batch, without a gradient and without making the host wait for the
device; all positions are passed over, since to pick the target positions the host would have to know their number.
A row is taken in pieces, which need at most 256 MiB beside the logits. A fused loss that returns the log-probabilities
of the targets instead (TRL's since 1.15) costs a sum.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_PIECE = 2**25  # logits turned into float32 and into log-probabilities at once


class TrainLosses:
    """Loss of each domain on the rows trained on since the last update, in nats per target token.

    Sums are kept in float64 on the training device; where that is Apple's MPS, which has no float64, on the CPU, and
    the host waits for every micro-batch.

    Args:
        num_domains: Number of domains.
        batches_per_step: Micro-batches of an optimizer step on each rank.
        device: Where the model trains.
    """

    def __init__(self, num_domains: int, batches_per_step: int, device: torch.device) -> None:
        self._batches_per_step = batches_per_step
        self._device = torch.device("cpu") if device.type == "mps" else device
        # rows: summed losses, target tokens
        self._of_step = torch.zeros((2, num_domains), dtype=torch.float64, device=self._device)  # of this rank
        self._since_update = torch.zeros_like(self._of_step)  # of all ranks
        self._measured = np.full(num_domains, np.nan)
        self.num_batches = 0
        """Micro-batches added since the last `sync`."""

    def add(self, predictions: torch.Tensor, labels: torch.Tensor, domain_ids: Sequence[int]) -> None:
        """Count a micro-batch.

        Args:
            predictions: Logits, shape (batch, length, vocabulary), or the log-probability of each target, 0 where there
                is none, shape (batch, length - 1); of any floating type.
            labels: Shape (batch, length); -100 where a token is no target. Each is predicted one position earlier.
            domain_ids: The domain of each row.

        Raises:
            RuntimeError: The optimizer step has all its micro-batches already.
        """
        if self.num_batches == self._batches_per_step:
            raise RuntimeError(
                f"signal: train saw more than the {self._batches_per_step} micro-batch(es) of an optimizer step, so "
                "their domains are not known: something else computes losses in training mode; use signal: probe"
            )
        self.num_batches += 1
        for of_row, row_labels, domain_id in zip(predictions, labels, domain_ids, strict=True):
            self._of_step[:, domain_id] += _row_sums(of_row, row_labels, self._device)

    def sync(self, accelerator) -> None:
        """Add up what the ranks have seen; to be called at the end of each optimizer step, on all of them.

        At each step, since a checkpoint is written by one rank alone.

        Args:
            accelerator: The host's `accelerate.Accelerator`.

        Raises:
            RuntimeError: The step had fewer micro-batches than it should.
        """
        if self.num_batches != self._batches_per_step:
            raise RuntimeError(
                f"signal: train saw {self.num_batches} of the {self._batches_per_step} micro-batch(es) of an optimizer "
                "step: a trainer that overrides `compute_loss` must call the inherited one; or use signal: probe"
            )
        self._since_update += accelerator.reduce(self._of_step, reduction="sum")
        self._of_step.zero_()
        self.num_batches = 0

    def measure(self, accelerator) -> np.ndarray:
        """Mean loss of each domain since the last call, float64, shape (num_domains,), the main process's on all.

        A domain without a target token since then keeps its loss from before; nan where it never had one. A loss that
        is no number counts as infinite.

        Args:
            accelerator: The host's `accelerate.Accelerator`.
        """
        mine = self._since_update if accelerator.is_main_process else torch.zeros_like(self._since_update)
        losses, num_tokens = accelerator.reduce(mine, reduction="sum").cpu().numpy()
        drawn = num_tokens > 0
        self._measured[drawn] = np.nan_to_num(losses[drawn] / num_tokens[drawn], nan=np.inf)
        self._since_update.zero_()
        return self._measured.copy()

    def state_dict(self) -> dict:
        """JSON-able state at the end of an optimizer step: the sums since the last update, and the losses measured."""
        losses, num_tokens = self._since_update.tolist()
        return {
            "losses": _to_json(losses),
            "num_tokens": num_tokens,
            "measured": _to_json(self._measured.tolist()),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state."""
        sums = [_from_json(state["losses"]), state["num_tokens"]]
        self._since_update = torch.tensor(sums, dtype=torch.float64, device=self._device)
        self._measured = np.array(_from_json(state["measured"]))


@contextmanager
def first_outputs(model: torch.nn.Module) -> Iterator[list]:
    """Collects what a model returns at its first call within the block, which is the one that its loss is made of.

    A host that is asked for the outputs may give those of one more forward, which takes time and draws random numbers
    (TRL since 1.15).
    """
    outputs: list = []

    def keep(_, __, returned) -> None:
        if not outputs:
            outputs.append(returned)

    handle = model.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def predictions_of(outputs: Sequence, labels: torch.Tensor) -> torch.Tensor:
    """What a model returned about the labels, for `TrainLosses.add`: logits, or the targets' log-probabilities.

    Args:
        outputs: Of the model's first call, as by `first_outputs`; empty where it was not called.
        labels: Shape (batch, length).

    Raises:
        RuntimeError: There is neither, or they do not fit the labels.
    """
    logits, log_probs = (_tensor(outputs, name) for name in ("logits", "log_probs"))
    found = log_probs if logits is None else logits
    if found is None:
        raise RuntimeError(
            "signal: train reads the logits of the training batches, and the model returned none. Switch off the fused "
            "or chunked loss that does without them (Liger's fused linear cross-entropy, cut cross entropy, "
            "loss_type: chunked_nll), or use signal: probe"
        )
    fits = labels[:, 1:].shape == found.shape if logits is None else labels.shape == found.shape[:-1]
    if not fits:
        raise RuntimeError(
            "signal: train needs a prediction for each label, got shapes "
            f"{tuple(found.shape)} and {tuple(labels.shape)} (the virtual tokens of prompt tuning, or a model that "
            "keeps some positions only); use signal: probe"
        )
    return found


def _tensor(outputs: Sequence, name: str) -> torch.Tensor | None:
    """A tensor by its name in the first of the outputs; None where it is missing or empty."""
    for returned in outputs[:1]:
        value = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        return value if isinstance(value, torch.Tensor) and value.numel() else None
    return None


@torch.no_grad()
def _row_sums(of_row: torch.Tensor, labels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Summed loss and number of target tokens of one row, float64, shape (2,), on the device."""
    targets = labels[1:].to(of_row.device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    sums[1] = (targets != -100).to(device).sum()
    if of_row.ndim == 1:
        sums[0] = -of_row.to(device).sum(dtype=torch.float64)
        return sums
    size = max(1, _PIECE // of_row.shape[-1])
    for piece, piece_targets in zip(of_row[:-1].split(size), targets.split(size), strict=True):
        sums[0] += _token_losses(piece, piece_targets).to(device).sum(dtype=torch.float64)
    return sums


def _token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position in float32, 0 where there is no target.

    Not torch's `cross_entropy`, which hosts replace by kernels that write over the logits.
    """
    log_probabilities = logits.float().log_softmax(-1)
    losses = -log_probabilities.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return losses.where(targets != -100, 0)


def _to_json(values: list[float]) -> list[float | str | None]:
    """Numbers for strict JSON, which knows neither nan nor inf."""
    return [value if math.isfinite(value) else None if math.isnan(value) else str(value) for value in values]


def _from_json(values: list[float | str | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
