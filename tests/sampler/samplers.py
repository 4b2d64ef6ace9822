"""Samplers for the tests, and what is looked at of them."""

import itertools
import sys

import numpy as np
from hypothesis import strategies as st

from versatune_plugin.sampler.draws import MixtureSampler

ROWS = {"law": 50, "medicine": 30, "code": 20}


def make_sampler(
    rows=ROWS, proportions=(0.5, 0.3, 0.2), block_size=8, num_samples=10**9, seed=3, row_costs=None
) -> MixtureSampler:
    return MixtureSampler(
        rows, proportions, block_size=block_size, num_samples=num_samples, seed=seed, row_costs=row_costs
    )


def take(sampler, number):
    return list(itertools.islice(sampler, number))


def count_calls(function):
    """Python function calls while it runs: the work, without a clock."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@st.composite
def proportion_vectors(draw, num_domains):
    weights = st.one_of(st.just(0.0), st.floats(1e-4, 1.0), st.integers(1, 9).map(float))
    drawn = np.array(draw(st.lists(weights, min_size=num_domains, max_size=num_domains).filter(any)))
    return drawn / drawn.sum()


def play(sampler, stretches):
    """The blocks of each stretch, shape (number of blocks, block size)."""
    first = 0
    for number, proportions in stretches:
        sampler.set_proportions(proportions, at_draw=first)
        last = first + number * sampler.block_size
        yield proportions, sampler.rows(first, last).reshape(number, sampler.block_size)
        first = last
