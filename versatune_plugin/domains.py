"""Domain names, their order, and the checks every proportion vector must pass."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SUM_TOLERANCE = 1e-6
_MOST_NAMES = 40  # shown where none is near
ProportionsLike = Mapping[str, float] | Sequence[float] | np.ndarray
"""Proportions as a mapping from domain, or as a vector in domain order."""
ROUNDING = 1e-12  # a sum this near to 1 is left alone, so that unchanged proportions stay the same to the bit


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: ``"; did you mean 'sigma'?"``, or the valid names where none is near, if not many."""
    valid = list(valid)
    matches = difflib.get_close_matches(name, valid, n=1)
    if not matches and len(valid) > _MOST_NAMES:
        return ""
    return f"; did you mean {matches[0]!r}?" if matches else f"; valid names: {', '.join(valid)}"


def is_domain_name(name: object) -> bool:
    """Whether this can name a domain."""
    return isinstance(name, str) and bool(name) and name == name.strip()


def check_domain_names(domains: Sequence[str], key: str = "domains") -> tuple[str, ...]:
    """Domain names in their order.

    Raises:
        ValueError: There is no domain, a name is empty or not a string, or a name occurs twice.
    """
    if not domains:
        raise ValueError(f"{key}: at least one domain is needed")
    for domain in domains:
        if not is_domain_name(domain):
            raise ValueError(
                f"{key}: a domain name must be a non-empty string without blanks around it, got {domain!r}"
            )
    duplicates = sorted({domain for domain in domains if list(domains).count(domain) > 1})
    if duplicates:
        raise ValueError(f"{key}: duplicate domain {', '.join(map(repr, duplicates))}; each name must occur once")
    return tuple(domains)


def misfits(names: Iterable, domains: Sequence, key: str) -> list[str]:
    """One line per name that is no domain and per domain without a name."""
    names = list(names)
    return [
        f"{key} names an unknown domain {name!r}{nearest(str(name), map(str, domains))}"
        for name in names
        if name not in domains
    ] + [
        f"{key} has no value for domain {name!r}; give one for each of: {', '.join(map(str, domains))}"
        for name in domains
        if name not in names
    ]


def in_domain_order(values_by_domain: Mapping, domains: Sequence, key: str) -> np.ndarray:
    """Values of a mapping as a float64 vector in domain order, shape (num_domains,).

    Raises:
        ValueError: A domain is missing, or a name is not a domain.
    """
    problems = misfits(values_by_domain, domains, key)
    if problems:
        raise ValueError("; ".join(problems))
    return np.array([values_by_domain[domain] for domain in domains], dtype=np.float64)


def check_proportions(proportions: ProportionsLike, domains: Sequence, key: str = "proportions") -> np.ndarray:
    """Proportions as a new float64 vector that sums to 1, shape (num_domains,), each in [0, 1].

    Args:
        proportions: A vector in domain order, or a mapping from domain to proportion.
        domains: Domain names in their order.
        key: Where the proportions come from, for the error text.

    Raises:
        ValueError: Unknown or missing domain, wrong length, a negative or non-finite entry, or a sum that
            differs from 1 by more than 1e-6.
    """
    if isinstance(proportions, Mapping):
        proportions = in_domain_order(proportions, domains, key)
    vector = np.array(proportions, dtype=np.float64)
    if vector.shape != (len(domains),):
        raise ValueError(
            f"{key} must hold one number per domain ({len(domains)}: {', '.join(map(str, domains))}), "
            f"got shape {vector.shape}"
        )
    for domain, proportion in zip(domains, vector, strict=True):
        if not np.isfinite(proportion) or proportion < 0:
            raise ValueError(f"{key} of domain {domain!r} must be a number of at least 0, got {proportion}")
    total = vector.sum()
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"{key} must sum to 1 (within {SUM_TOLERANCE}), got {total:.8g}")
    return vector if abs(total - 1.0) <= ROUNDING else vector / total
