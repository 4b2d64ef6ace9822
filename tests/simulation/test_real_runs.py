"""Runs of TRL, replayed under their own settings."""

import pytest

from versatune_plugin.simulation import format_simulation, simulate

pytest.importorskip("trl")

from tests.hosts import inside, runs

FIXED = {"initial_proportions": None, "sigma": None, "reference_losses": None}
REAL = {
    "expansion-from-a-start": (
        {
            "expansion": {"domain": "code", "start": 0.5, "epsilon": 0.05, "delta": 0.1},
            "probe": {"rows_per_domain": 8},
        },
        {},
    ),
    "own-references-guards-and-look-ahead": (
        {
            "reference_losses": "self",
            "guards": {"floor": 0.1, "max_passes": 0.26, "max_change": 0.1},
            "update_interval": 2,
        },
        {"learning_rate": 0.3, "dataloader_num_workers": 1},
    ),
    "odm-on-training-losses": (
        {"strategy": "odm", "probe": None, "update_interval": 1} | FIXED,
        {"loss_type": "nll"},
    ),
    "dmt": ({"strategy": "dmt", "stages": {"general": "law", "kappa": 0.25}} | FIXED, {}),
}
KEYS = ("step", "drawn_by_domain", "proportions_before", "proportions", "acts_at_draw", "expanded", "note", "skipped")


@pytest.fixture(scope="module", params=REAL)
def real_run(request, workspace, tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp(request.param)
    changes, options = REAL[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "versatune_plugin.hosts.callback.plot_history", lambda records, path: path
        )  # takes a quarter of a run
        inside.train(workspace, folder, versatune=inside.block(**changes), **options)
    return folder


def test_a_run_replayed_under_its_own_settings_is_the_recorded_one_bit_for_bit(real_run):
    recorded = [{key: record[key] for key in KEYS} for record in runs.history(real_run)]
    simulation = simulate(real_run)
    assert len({str(record["proportions"]) for record in recorded}) > 1, "the proportions never moved"
    assert [{key: getattr(record, key) for key in KEYS} for record in simulation.outcomes[0].records] == recorded
    assert "note: equal to the recorded proportions at every step" in format_simulation(simulation)
