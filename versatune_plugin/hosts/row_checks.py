"""What each domain's rows tell of a run before it begins: targets, masks, and how many a host's preparation left.

Both hosts ask here, a trainer, and `versatune check`. Rows are counted once; no host is imported.
"""

import logging
from collections.abc import Mapping

import numpy as np
from datasets import Dataset, IterableDataset

from versatune_plugin.files import rows as data

_MANY = 0.05  # of a domain's rows dropped in a preparation: of so many is warned


def transform_problems(given: Mapping[str, Dataset]) -> list[str]:
    """Rows that are made when they are read: what they will hold cannot be counted, and a join loses the transform.

    Args:
        given: Rows by what they are called in a message.
    """
    return [
        f"{name} makes its rows when they are read (with_transform or set_transform), but a mixture counts tokens and "
        "targets before it draws: make them first, by rows.map(...)"
        for name, rows in given.items()
        if isinstance(rows, Dataset) and rows.format["type"] == "custom"
    ]


def columns_of(rows: Dataset | IterableDataset) -> list[str]:
    """Names of the columns; of a stream that does not tell, those of its first row."""
    return list(rows.column_names or next(iter(rows), {}))


def check_tokenised(train: Mapping, heldout: Mapping) -> None:
    """Report at once all domains without tokens, for a trainer that takes tokenised rows.

    Raises:
        ValueError: With one line for each.
    """
    if problems := _without_tokens({"train_dataset": train, "eval_dataset": heldout}):
        raise ValueError(
            f"this trainer takes tokenised rows, {data.TOKENS} and {data.LABELS}, of a causal language model "
            "(VersaTuneSFTTrainer tokenises rows itself; rows of pairs, as for DPO, cannot be mixed):\n  "
            + "\n  ".join(problems)
        )


def check_prepared(train: Mapping, heldout: Mapping) -> None:
    """Report at once all domains whose rows a host was told to leave as they are, and that have no tokens.

    Raises:
        ValueError: With one line for each.
    """
    if problems := _without_tokens({"datasets": train, "held-out rows": heldout}):
        raise ValueError(
            f"versatune: rows have no {data.TOKENS} after preparation; skip_prepare_dataset is for rows that are "
            "tokenised already:\n  " + "\n  ".join(problems)
        )


def _without_tokens(given: Mapping[str, Mapping]) -> list[str]:
    """Rows without tokens, by the names of what holds them, with the columns that they have."""
    columns = {
        f"{name}[{domain!r}]": columns_of(rows)
        for name, by_domain in given.items()
        for domain, rows in by_domain.items()
    }
    return [f"{where} has {', '.join(names)}" for where, names in columns.items() if data.TOKENS not in names]


def target_problems(train: Mapping[str, Dataset], heldout: Mapping[str, Dataset] | None = None) -> list[str]:
    """Domains that would be drawn and teach nothing, or be measured on nothing: no row has a target token.

    Args:
        train: Training rows per domain; those that are not tokenised are passed over.
        heldout: Held-out rows per domain, likewise, where they are to be measured.
    """
    of_train = [
        f"domain {domain!r}: none of its {len(rows):,} training rows has a target token, so nothing can be learned "
        "from them: all labels are masked (-100), or what is not masked was cut off"
        for domain, rows in _with_tokens(train)
        if not data.target_counts(rows).any()
    ]
    of_heldout = [repr(domain) for domain, rows in _with_tokens(heldout or {}) if not data.target_counts(rows).any()]
    if not of_heldout:
        return of_train
    return [*of_train, f"the held-out rows of {', '.join(of_heldout)} have no target token to measure"]


def _with_tokens(by_domain: Mapping[str, Dataset]) -> list[tuple[str, Dataset]]:
    return [
        (domain, rows)
        for domain, rows in by_domain.items()
        if isinstance(rows, Dataset) and len(rows) and data.TOKENS in rows.column_names
    ]


def check_targets(
    train: Mapping[str, Dataset], heldout: Mapping[str, Dataset], logger: logging.Logger | None, streamed: bool = False
) -> None:
    """Refuse training rows without targets, and say where some have none, or where other tokens are measured.

    Args:
        train: Tokenised training rows per domain.
        heldout: Tokenised held-out rows per domain.
        logger: Is told; None for silence.
        streamed: Whether `train` holds the first rows of streams, whose others may have targets.

    Raises:
        ValueError: No training row of a domain has a target; all such domains are named.
    """
    if (problems := target_problems(train)) and not streamed:
        raise ValueError("versatune cannot train on these domains:\n  " + "\n  ".join(problems))
    for line in target_remarks(train, heldout, "of the first " if streamed else "of ") if logger else ():
        logger.warning("%s", line)


def target_remarks(train: Mapping[str, Dataset], heldout: Mapping[str, Dataset], of: str = "of ") -> list[str]:
    """Domains of which some training rows have no target, and those masked in one of their two sets alone."""
    empty = {domain: (np.count_nonzero(data.target_counts(rows) == 0), len(rows)) for domain, rows in train.items()}
    lines = [
        f"domain {domain!r}: {number:,} {of}{size:,} training rows have no target token: they are drawn like the "
        "others and teach nothing"
        for domain, (number, size) in empty.items()
        if number
    ]
    for domain in train:
        if not len(heldout.get(domain, ())):
            continue
        masked = data.has_masked_tokens(train[domain])
        if masked != data.has_masked_tokens(heldout[domain]):
            parts = ("training", "held-out") if masked else ("held-out", "training")
            lines.append(
                f"domain {domain!r}: tokens of its {parts[0]} rows are masked (prompts), none of its {parts[1]} rows: "
                "its loss is measured on other tokens than it is trained on"
            )
    return lines


def shared_remarks(train: Mapping[str, Dataset], heldout: Mapping[str, Dataset], streamed: bool = False) -> list[str]:
    """Rows that two domains have, or that are trained on and held out.

    Args:
        train: Tokenised training rows per domain.
        heldout: Tokenised held-out rows per domain.
        streamed: Whether `train` holds the first rows of streams, which are all that is compared.
    """
    lines = data.shared_rows(train, heldout)
    if not (streamed and lines):
        return lines
    looked_at = ", ".join(f"{domain} {len(rows)}" for domain, rows in train.items())
    return [
        *lines,
        f"of streams only the first rows were compared ({looked_at}): where the held-out rows are stream.take(200), "
        "train on stream.skip(200)",
    ]


def drop_remarks(
    given: Mapping[str, int], left: Mapping[str, int], host: str, kind: str = "training"
) -> list[tuple[int, str]]:
    """The level and the text of a line for each domain that lost rows while a host prepared them.

    Args:
        given: Rows per domain before; a domain whose number is not known is left out.
        left: Rows per domain afterwards.
        host: Its name.
        kind: Of the rows.
    """
    return [
        (
            drop_level(number - left[domain], number),
            f"domain {domain!r}: {host} left {left[domain]:,} of {number:,} {kind} rows: the others are too long, or "
            "nothing of them is trained on",
        )
        for domain, number in given.items()
        if 0 < left.get(domain, 0) < number
    ]


def drop_level(lost: int, number: int) -> int:
    """The level at which it is logged that so many of a domain's rows were dropped: a few are nothing to mend."""
    return logging.WARNING if lost >= _MANY * number else logging.INFO
