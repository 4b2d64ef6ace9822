"""Probes: per-domain loss of a model on fixed held-out rows, kept as sums so that ranks can add them.

One pass over all domains in domain-pure batches of rows of similar length. The loss of a domain is the sum of its
target-token losses over the number of its target tokens, both in float64.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Probes:
    """The rows to measure and how they are batched.

    Args:
        rows_by_domain: Tokenised rows per domain, in domain order.
        batches: (domain index, positions in that domain's rows), covering every row once.
    """

    rows_by_domain: Mapping[str, Sequence]
    batches: tuple[tuple[int, tuple[int, ...]], ...]


def choose_rows(num_rows: int, num_wanted: int, seed: int) -> list[int]:
    """Positions of at most `num_wanted` rows out of `num_rows`, the same for the same seed, ascending."""
    return sorted(random.Random(seed).sample(range(num_rows), min(num_rows, num_wanted)))


def build_probes(
    rows_by_domain: Mapping[str, Sequence], lengths_by_domain: Mapping[str, Sequence[int]], batch_size: int
) -> Probes:
    """Domain-pure batches of rows of similar length.

    Args:
        rows_by_domain: The rows to measure, per domain in domain order.
        lengths_by_domain: Tokens of each of these rows.
        batch_size: Rows per forward pass, >= 1.
    """
    batches = []
    for domain_id, lengths in enumerate(lengths_by_domain.values()):
        order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
        batches += [(domain_id, tuple(order[start : start + batch_size])) for start in range(0, len(order), batch_size)]
    return Probes(rows_by_domain=rows_by_domain, batches=tuple(batches))


def sum_losses(
    probes: Probes,
    batch_loss: Callable[[list], tuple[torch.Tensor, torch.Tensor]],
    rank: int,
    world_size: int,
) -> np.ndarray:
    """This rank's share of the summed token losses and token counts, float64, shape (2, num_domains).

    Every rank makes the same number of forward passes (the last ones with weight zero), since a sharded model
    needs all ranks in each of them.

    Args:
        probes: What to measure; the same on all ranks.
        batch_loss: Rows -> (mean loss per target token, number of target tokens), scalar tensors.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
    """
    sums = np.zeros((2, len(probes.rows_by_domain)))
    rows = list(probes.rows_by_domain.values())
    for first in range(0, len(probes.batches), world_size):
        mine = first + rank
        domain_id, positions = probes.batches[mine if mine < len(probes.batches) else first]
        loss, num_tokens = batch_loss([rows[domain_id][position] for position in positions])
        if mine < len(probes.batches) and num_tokens > 0:
            sums[:, domain_id] += (float(loss) * int(num_tokens), int(num_tokens))
    return sums


def num_target_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Target tokens of causal-LM labels of shape (batch, length): those not -100, from the second on."""
    return (labels[:, 1:] != -100).sum()
