"""Shared by the tests that train with the hosts."""

import gc

import pytest

from versatune_plugin.report import plot_history

PLOT = "versatune_plugin.hosts.callback.plot_history"


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries():
    """The hosts collect garbage in every run, which then need not walk over the libraries loaded so far."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Runs in the test's own process draw none, which takes as long as their training; runs in other processes do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PLOT, lambda history, path: path)
        yield


@pytest.fixture
def plots(monkeypatch):
    """For tests that look at the plot of a run in their own process."""
    monkeypatch.setattr(PLOT, plot_history)
