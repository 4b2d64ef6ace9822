"""Rows that took the place of a trainer's own after it was built, and the domain that each of them is of.

A map that masks prompts, a shuffle or a filter leaves the tokens of its rows, which then say the domain. Where tokens
were changed, too, their rows are known by their place, if the others have kept theirs.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
from datasets import Dataset

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files import rows as data
from versatune_plugin.hosts.checks import DOMAIN_COLUMN, as_domains

_REMEDY = (
    "change the rows before they are given to the trainer, or set {name} to a dict of tokenised datasets per domain, "
    "or to a tokenised Dataset with a domain column"
)


def version_of(rows) -> tuple:
    """What tells rows from others that take their place, and from themselves where they are changed in place."""
    if isinstance(rows, Mapping):
        return tuple((name, version_of(part)) for name, part in rows.items())
    return id(rows), getattr(rows, "_fingerprint", None)  # the library's, which a format or a transform changes


def taken_over(rows, name: str, former: Mapping, config: VersaTuneConfig) -> dict:
    """Rows by domain, of what took the place of a trainer's own; in the former order where the domains are the same.

    Args:
        rows: What the trainer's attribute holds now.
        name: Of the attribute.
        former: The rows by domain that it held before.
        config: The block.

    Raises:
        ValueError: The domain of a row is not known, or rows are not tokenised.
    """
    column = config.domain_column or DOMAIN_COLUMN
    if isinstance(rows, Dataset) and column not in rows.column_names:
        by_domain = _told_apart(rows, name, former)
    else:
        by_domain = as_domains(rows, name, config)
    if any(isinstance(part, Dataset) and part.format["type"] == "custom" for part in by_domain.values()):
        raise ValueError(f"{name} has got a transform, and what that makes of a row is not counted: use `map`")
    raw = [domain for domain, part in by_domain.items() if data.TOKENS not in (part.column_names or [data.TOKENS])]
    if raw:
        raise ValueError(f"{name} has no column {data.TOKENS!r} in {', '.join(raw)}: {_REMEDY.format(name=name)}")
    return {domain: by_domain[domain] for domain in former} if by_domain.keys() == former.keys() else by_domain


def _told_apart(rows: Dataset, name: str, former: Mapping) -> dict:
    """The rows of each domain, by their tokens."""
    remedy = _REMEDY.format(name=name)
    if data.TOKENS not in rows.column_names or not all(isinstance(part, Dataset) for part in former.values()):
        raise ValueError(f"{name} was replaced by rows whose domains are not known: {remedy}")
    domains_of: dict[int, set[int]] = {}
    for domain_id, part in enumerate(former.values()):
        for digest in _of_tokens(part):
            domains_of.setdefault(digest, set()).add(domain_id)
    found = [domains_of.get(digest, set()) for digest in _of_tokens(rows)]
    places = np.repeat(np.arange(len(former)), [len(part) for part in former.values()])
    if not _in_place(found, places):
        unknown = [row for row, domain_ids in enumerate(found) if len(domain_ids) != 1]
        if unknown:
            raise ValueError(
                f"{name} was changed after the trainer was built, and of {len(unknown)} of its {len(found)} rows the "
                f"domain is not known (the first is row {unknown[0]}): {remedy}"
            )
        places = np.fromiter(chain.from_iterable(found), dtype=np.int64)
    return {domain: rows.select(np.flatnonzero(places == domain_id)) for domain_id, domain in enumerate(former)}


def _of_tokens(rows: Dataset) -> list[int]:
    return data.row_digests(rows, [data.TOKENS]).tolist()


def _in_place(found: Iterable[set[int]], places: np.ndarray) -> bool:
    """Whether all rows whose domain is known stand in its place, and some of every domain do."""
    found = list(found)
    if len(found) != len(places):
        return False
    known = [(place, domain_ids) for place, domain_ids in zip(places.tolist(), found, strict=True) if domain_ids]
    return all(place in ids for place, ids in known) and {place for place, _ in known} == set(places.tolist())
