"""What a collator makes of rows: it may drop some, or make other targets than a row's own labels say.

That of transformers (`DataCollatorForLanguageModeling`) takes every token for a target but its padding, wherever it
stands: with `pad_token = eos_token` no end token is trained on, and a row's own labels are lost. Whether it is so some
rows tell, each in a batch of its own; all others are then counted by the same rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from versatune_plugin.files import rows as data

_TRIED = 4  # rows of a domain, of those that tell the two rules apart, and of the first


@dataclass(frozen=True)
class BatchTargets:
    """What a collator makes targets."""

    masked: int | None = None
    """The token that is none, all others being targets; None where the rows' own labels hold."""
    remark: str | None = None
    """What to say about it."""
    is_known: bool = True
    """Whether the targets of all rows can be counted."""


def batch_targets(
    train: Mapping[str, Dataset], collate: Callable[[Dataset], Mapping], padding: int | None
) -> BatchTargets:
    """The rule by which a collator makes targets, told by some rows of each domain.

    Args:
        train: Tokenised rows per domain.
        collate: Makes a batch of the given rows.
        padding: The token that the collator pads with, where it has a tokenizer.
    """
    tried = {}  # by domain: target tokens in the batches, by the rows' labels, without padding
    wholes = {}
    for domain, rows in train.items():
        own = data.target_counts(rows)
        without_padding = own if padding is None else data.target_counts(rows, masked=padding)
        telling = np.flatnonzero(own != without_padding)[:_TRIED]
        places = np.union1d(telling, np.arange(min(_TRIED, len(rows))))
        in_batch = np.array([_num_targets(collate(rows.select([place]))) for place in places])
        tried[domain] = in_batch, own[places], without_padding[places]
        wholes[domain] = own.sum(), without_padding.sum()
    if all(np.array_equal(in_batch, own) for in_batch, own, _ in tried.values()):
        return BatchTargets()
    if all(np.array_equal(in_batch, without_padding) for in_batch, _, without_padding in tried.values()):
        counts = [f"{domain} {left:,} (not {own:,})" for domain, (own, left) in wholes.items() if left != own]
        return BatchTargets(
            padding,
            f"the data collator makes other targets than the rows have: every token but {padding}, its padding, "
            f"wherever it stands. They are counted so: {', '.join(counts)}. To train on end tokens, or on what the "
            "rows' labels leave, give it a padding token of its own, or take a collator that keeps `labels`",
        )
    others = [
        f"{domain} {in_batch.sum():,} of {own.sum():,}"
        for domain, (in_batch, own, _) in tried.items()
        if not np.array_equal(in_batch, own)
    ]
    return BatchTargets(
        None,
        f"the data collator makes other targets than the rows have, in the rows that were tried: {', '.join(others)}. "
        "Losses are of what it leaves; target tokens in the history count what the rows have. Give rows with `labels` "
        "that are masked already",
        is_known=False,
    )


def rows_lost(train: Mapping[str, Dataset], collate: Callable[[Dataset], Mapping], batch_rows: int) -> str | None:
    """What to say of a collator that makes no batch, or one of other rows than it is given; None where it keeps them.

    Args:
        train: Tokenised rows per domain.
        collate: Makes a batch of the given rows.
        batch_rows: Rows of a process's micro-batch.
    """
    for domain, rows in train.items():
        given = rows.select(range(min(batch_rows, len(rows))))
        try:
            batch = collate(given)
        except (TypeError, ValueError) as error:
            return (
                f"the data collator makes no batch of {len(given)} rows of domain {domain!r}: {error}. Give one that "
                "pads them, such as DataCollatorForSeq2Seq(tokenizer)"
            )
        number = len(batch[data.TOKENS])
        joined = number == 1 and _num_tokens(batch) >= data.token_counts(given).sum()  # to one row without padding
        if number != len(given) and not joined:
            return (
                f"the data collator makes a batch of {number} row(s) out of {len(given)} of domain {domain!r}: then "
                "nobody knows how many rows of which domain are trained on. Drop or repeat rows in the dataset, or "
                "mask their labels (-100)"
            )
    return None


def _num_tokens(batch: Mapping) -> int:
    """Tokens of a batch that are no padding, as far as it tells."""
    return int(batch["attention_mask"].sum() if "attention_mask" in batch else batch[data.TOKENS].numel())


def _num_targets(batch: Mapping) -> int:
    """Target tokens of a batch of one row: labels from the second on that are not -100."""
    return int((batch[data.LABELS][..., 1:] != -100).sum())
