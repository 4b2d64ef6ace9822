"""Probes: per-domain loss of a model on fixed held-out rows, kept as sums so that ranks can add them.

One pass over all domains, longest rows first, in domain-pure batches of rows of similar length. The loss of a domain is
the sum of its target-token losses over the number of its target tokens, both in float64; or, where it is compared with
a model of another tokenizer, over the UTF-8 bytes of its target text.

The standard errors of losses come with them at little cost (see `signals.loss_errors`): the sums of every batch are
kept apart, and batches come in pairs, which share the rows of a window of similar lengths at random. Padding costs as
much as tokens do; so on a CPU, where a pass over one row is as fast per token as any, every row is a batch.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from versatune_plugin.files import rows as data

_FEWEST_BATCHES = 4
"""Per domain, where it has as many rows: with fewer, nobody could tell an error of its loss."""

Batch = tuple[int, tuple[int, ...]]
"""Domain index, positions in that domain's rows."""


@dataclass(frozen=True)
class Probes:
    """The rows to measure and how they are batched.

    Args:
        rows_by_domain: Tokenised rows per domain, in domain order.
        batches: Covering every row once, longest first.
        pieces: The number of each batch within its domain; batches 2w and 2w + 1 share the rows of a window.
        bytes_by_domain: UTF-8 bytes of each row's target text; None where nobody asks for losses per byte.
    """

    rows_by_domain: Mapping[str, Sequence]
    batches: tuple[Batch, ...]
    pieces: tuple[int, ...]
    bytes_by_domain: Mapping[str, Sequence[int]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Pieces of the domain that has the most, rounded up to whole windows; domains."""
        return (max(self.pieces) // 2 + 1) * 2, len(self.rows_by_domain)

    @property
    def num_rows(self) -> np.ndarray:
        """Rows of each piece, float64, shape (num_pieces, num_domains)."""
        return self._sums([[1] * len(rows) for rows in self.rows_by_domain.values()])

    @property
    def num_bytes(self) -> np.ndarray | None:
        """Bytes of each piece, float64, shape (num_pieces, num_domains); None where they are not known."""
        return None if self.bytes_by_domain is None else self._sums(list(self.bytes_by_domain.values()))

    def _sums(self, amounts: Sequence[Sequence[int]]) -> np.ndarray:
        sums = np.zeros(self.shape)
        for (domain_id, positions), piece in zip(self.batches, self.pieces, strict=True):
            sums[piece, domain_id] = sum(amounts[domain_id][position] for position in positions)
        return sums


@dataclass(frozen=True)
class Cost:
    """What the probes of a run cost, predicted from the sizes of rows, in any one unit: tokens, characters, rows.

    Not counted is what does not grow with the rows: of a training step the optimizer, of a pass what it takes to start
    it, which small models on accelerators mostly wait for.

    Args:
        heldout: Size of every held-out row, per domain.
        trained: What the whole run trains on, on all ranks, as forward passes: sizes of the rows times
            `forwards_per_trained_row`.
        num_measurements: Probes of the run.
        batch_size: Rows per forward pass, >= 1.
        seed: Of the choice of rows.
        world_size: Number of processes.
    """

    heldout: Mapping[str, Sequence[int]]
    trained: float
    num_measurements: int
    batch_size: int
    seed: int
    world_size: int = 1

    def share(self, rows_per_domain: int) -> float:
        """Share of the run's time that probes of so many rows take, in [0, 1): padding and ranks that wait counted."""
        lengths = {
            domain: [sizes[row] for row in choose_rows(len(sizes), rows_per_domain, self.seed)]
            for domain, sizes in self.heldout.items()
        }
        batches, _ = _batches(lengths, self.batch_size)
        of_domain = list(lengths.values())
        passes = [max(of_domain[k][row] for row in rows) * len(rows) for k, rows in batches]
        rounds = [max(passes[first : first + self.world_size]) for first in range(0, len(passes), self.world_size)]
        probed = self.num_measurements * self.world_size * sum(rounds)
        return probed / (probed + self.trained)


def num_measurements(num_steps: int, interval: int) -> int:
    """Probes of a run: before its first step, at every update, and at its end."""
    return 1 + -(-num_steps // interval)


def rows_per_pass(device_type: str, eval_batch_size: int) -> int:
    """Most rows of a forward pass.

    On a CPU a single one: there the time of a pass is that of its tokens, padding included.

    Args:
        device_type: Such as ``"cuda"`` or ``"cpu"``.
        eval_batch_size: The user's own number, which fits into memory.
    """
    return 1 if device_type == "cpu" else eval_batch_size


def forwards_per_trained_row(full: bool) -> int:
    """What training on a row costs at least, in forward passes.

    Args:
        full: Whether all parameters are trained: then the backward pass costs two forward passes; else, as with LoRA,
            which has hardly a gradient of weights to compute, at least one.
    """
    return 3 if full else 2


def choose_rows(num_rows: int, num_wanted: int, seed: int) -> list[int]:
    """Positions of at most `num_wanted` rows out of `num_rows`, the same for the same seed, ascending."""
    return sorted(random.Random(seed).sample(range(num_rows), min(num_rows, num_wanted)))


def describe(rows: Dataset, decode: Callable[[list[int]], str] | None) -> dict:
    """What a domain's probe consists of, as plain JSON.

    Args:
        rows: The tokenised rows that are measured.
        decode: Token numbers -> text without special tokens; None where the run has no tokenizer.

    Returns:
        ``rows``, ``target_tokens``, ``fingerprint`` (of tokens and labels); with a tokenizer also ``target_bytes``
        (UTF-8 bytes of the target text, blanks around each row's left out) and digests of the text, blanks apart,
        that do not depend on the tokenizer: ``row_texts`` of whole rows, ``target_texts`` of their targets.
    """
    facts = {"rows": len(rows), "target_tokens": data.num_targets(rows), "fingerprint": data.fingerprint(rows)}
    if decode is None:
        return facts
    whole = [decode(row[data.TOKENS]) for row in rows]
    targets = [decode(_target_tokens(row)) for row in rows]
    return facts | {
        "target_bytes": sum(map(_num_bytes, targets)),
        "row_texts": _digest(whole),
        "target_texts": _digest(targets),
    }


def same_rows(one: Mapping, other: Mapping) -> bool:
    """Whether two descriptions are of rows with the same text, whatever their tokenizers.

    A row's first token is no target, so that target texts differ where only one tokenizer has a start token; whole
    rows differ where each tokenizer has a chat template of its own. Equal rows agree in at least one.
    """
    return any(one[key] == other[key] for key in ("row_texts", "target_texts"))


def decoder(tokenizer) -> Callable[[list[int]], str] | None:
    """Token numbers -> text without special tokens; None without a tokenizer."""
    if tokenizer is None:
        return None
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _target_tokens(row: Mapping) -> list[int]:
    """Tokens with a loss: labels other than -100, from the second on."""
    return [token for token in row.get(data.LABELS, row[data.TOKENS])[1:] if token != -100]


def target_bytes(rows: Dataset, decode: Callable[[list[int]], str]) -> list[int]:
    """UTF-8 bytes of the target text of each row, blanks around it left out."""
    return [_num_bytes(decode(_target_tokens(row))) for row in rows]


def _num_bytes(text: str) -> int:
    return len(text.strip().encode())


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update("".join(text.split()).encode() + b"\0")
    return digest.hexdigest()


def build_probes(
    rows_by_domain: Mapping[str, Sequence],
    lengths_by_domain: Mapping[str, Sequence[int]],
    batch_size: int,
    bytes_by_domain: Mapping[str, Sequence[int]] | None = None,
) -> Probes:
    """Domain-pure batches of rows of similar length, longest first, the same for the same lengths and batch size.

    Args:
        rows_by_domain: The rows to measure, per domain in domain order.
        lengths_by_domain: Tokens of each of these rows.
        batch_size: Most rows per forward pass, >= 1.
        bytes_by_domain: UTF-8 bytes of each row's target text, for losses per byte.
    """
    return Probes(rows_by_domain, *_batches(lengths_by_domain, batch_size), bytes_by_domain)


def _batches(lengths_by_domain: Mapping[str, Sequence[int]], batch_size: int) -> tuple[tuple[Batch, ...], tuple]:
    """Batches, longest first over all domains, so that ranks which work side by side have equal work; their pieces."""
    dealt = [
        (max(lengths[row] for row in rows), domain_id, piece, tuple(rows))
        for domain_id, lengths in enumerate(lengths_by_domain.values())
        for piece, rows in enumerate(_pairs(lengths, batch_size))
        if rows
    ]
    dealt.sort(key=lambda batch: -batch[0])
    return tuple((domain_id, rows) for _, domain_id, _, rows in dealt), tuple(piece for _, _, piece, _ in dealt)


def _pairs(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions of the rows of each piece; pieces 2w and 2w + 1 are random halves of a window of similar lengths.

    Of one domain, with at most `batch_size` rows each. The second half of a window of one row is empty.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    half = min(batch_size, math.ceil(len(order) / _FEWEST_BATCHES))
    num_windows = math.ceil(len(order) / (2 * half))
    ends = [len(order) * window // num_windows for window in range(num_windows + 1)]
    rng, pieces = random.Random(len(order)), []
    for start, end in itertools.pairwise(ends):
        window = order[start:end]
        rng.shuffle(window)
        pieces += [sorted(window[::2]), sorted(window[1::2])]
    return pieces


def sum_losses(
    probes: Probes,
    batch_loss: Callable[[list], tuple[torch.Tensor, torch.Tensor]],
    rank: int,
    world_size: int,
) -> np.ndarray:
    """This rank's share of the summed token losses and token counts, float64, shape (2, num_pieces, num_domains).

    Every rank makes the same number of forward passes (the last ones with weight zero), since a sharded model
    needs all ranks in each of them.

    Args:
        probes: What to measure; the same on all ranks.
        batch_loss: Rows -> (mean loss per target token, number of target tokens), scalar tensors.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
    """
    sums = np.zeros((2, *probes.shape))
    rows = list(probes.rows_by_domain.values())
    for first in range(0, len(probes.batches), world_size):
        mine = first + rank
        domain_id, positions = probes.batches[mine if mine < len(probes.batches) else first]
        loss, num_tokens = batch_loss([rows[domain_id][position] for position in positions])
        if mine < len(probes.batches) and num_tokens > 0:
            sums[:, probes.pieces[mine], domain_id] += (float(loss) * int(num_tokens), int(num_tokens))
    return sums


def num_target_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Target tokens of causal-LM labels of shape (batch, length): those not -100, from the second on."""
    return (labels[:, 1:] != -100).sum()
