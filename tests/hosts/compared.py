"""A run of several processes against the same run in one."""

from pathlib import Path

import pytest

from tests.hosts import runs


def check_rows(several: Path, single: Path, num_ranks: int) -> None:
    """Every rank trained on its own part of the block that one process takes at a step, in the stream's order."""
    shared, whole = runs.stream(several), runs.stream(single)
    assert sorted(shared) == sorted(whole)[5 if several.name.endswith("resumed") else 0 :]
    for step, ranks in shared.items():
        assert len(ranks) == num_ranks
        dealt_out = [row for batches in zip(*ranks, strict=True) for batch in batches for row in batch]
        assert dealt_out == [row for batch in whole[step][0] for row in batch]


def check_history(several: Path, single: Path, within: float) -> None:
    """Same lines, and the same numbers in them as far as floating point allows."""
    ours, theirs = runs.history(several), runs.history(single)
    moved = {str(record["proportions"]) for record in ours}
    assert len(moved) > 2, "the proportions never moved"
    for record, expected in zip(ours, theirs, strict=True):
        for each in (record, expected):
            each.pop("run")  # how many micro-batches make a step
        assert_close(record, expected, within)


def assert_close(got, expected, within: float, where: str = "") -> None:
    assert type(got) is type(expected), where
    if isinstance(expected, dict):
        assert list(got) == list(expected), where
        for key in expected:
            assert_close(got[key], expected[key], within, f"{where}.{key}")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, abs=within, rel=0), where
    else:
        assert got == expected, where
