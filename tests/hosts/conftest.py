"""Shared by the tests that train with the hosts."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries():
    """The hosts collect garbage in every run, which then need not walk over the libraries loaded so far."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
