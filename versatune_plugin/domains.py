"""Domain names, their order, and the checks every proportion vector must pass."""

import datetime
import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SUM_TOLERANCE = 1e-6
WRITTEN_TOLERANCE = 1.0001e-4
"""How far the sum of proportions that a person wrote may be from 1, such as of 0.3333 three times."""
_MOST_NAMES = 40  # shown where none is near
ProportionsLike = Mapping[str, float] | Sequence[float] | np.ndarray
"""Proportions as a mapping from domain, or as a vector in domain order."""
_NOT_ON_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, halves of characters, line separators
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
    return name_problem(name) is None


def name_problem(name: object) -> str | None:
    """Why this cannot name a domain, with what was given; None where it can."""
    if not isinstance(name, str):
        return f"a domain name must be a string, got {name!r}{quotes_hint(name)}"
    if not name or name != name.strip():
        return f"a domain name must be a non-empty string without blanks around it, got {name!r}"
    if any(unicodedata.category(character) in _NOT_ON_A_LINE for character in name):
        return f"a domain name must be one line without tabs and control characters, got {name!r}"
    return None


def quotes_hint(value: object) -> str:
    """What to do about something that YAML reads as another kind of value, such as `no`, `1` or `null`; else empty."""
    words = {True: "`yes`, `on` or `true`", False: "`no`, `off` or `false`", None: "`null`, `~` or nothing"}
    if isinstance(value, bool) or value is None:
        return f", as YAML reads {words[value]}: put the name in quotes"
    return f": put it in quotes, '{value}'" if isinstance(value, int | float | datetime.date) else ""


def check_domain_names(domains: Sequence[str], key: str = "domains") -> tuple[str, ...]:
    """Domain names in their order.

    Raises:
        ValueError: There is no domain, a name is none (see `name_problem`), or a name occurs twice.
    """
    if not domains:
        raise ValueError(f"{key}: at least one domain is needed")
    problems = [problem for domain in domains if (problem := name_problem(domain))]
    if problems:
        raise ValueError("; ".join(f"{key}: {problem}" for problem in problems))
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


def check_proportions(
    proportions: ProportionsLike, domains: Sequence, key: str = "proportions", tolerance: float = SUM_TOLERANCE
) -> np.ndarray:
    """Proportions as a new float64 vector that sums to 1, shape (num_domains,), each in [0, 1].

    Args:
        proportions: A vector in domain order, or a mapping from domain to proportion.
        domains: Domain names in their order.
        key: Where the proportions come from, for the error text.
        tolerance: How far their sum may be from 1; they are divided by it.

    Raises:
        ValueError: Unknown or missing domain, wrong length, a negative or non-finite entry, or a sum that
            differs from 1 by more than the tolerance.
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
    if abs(total - 1.0) > tolerance:
        raise ValueError(f"{key} must sum to 1 (within {tolerance:.2g}), got {total:.8g}")
    return vector if abs(total - 1.0) <= ROUNDING else vector / total
