"""The loss model of a YAML."""

import numpy as np
import pytest

from tests.simulation.histories import refusal
from versatune_plugin.files.documents import write_document
from versatune_plugin.simulation import format_simulation, simulate
from versatune_plugin.simulation.modelled import ModelledLosses


def test_modelled_losses_fall_with_a_domains_own_rows_and_rise_with_those_of_others():
    start, scale = np.array([3.0, 2.0]), np.array([100.0, 50.0])
    model = ModelledLosses(start=start, reference=np.ones(2), scale=scale, memory=400.0)
    assert model.losses(np.zeros(2)).tolist() == [3.0, 2.0]
    effective = model.effective_rows(np.zeros(2), np.array([100.0, 0.0]))
    assert model.losses(effective) == pytest.approx([1 + 2 / np.e, 2.0])
    effective = model.effective_rows(effective, np.array([0.0, 400.0]))
    assert effective == pytest.approx([100 / np.e, 400.0])
    assert model.losses(effective) == pytest.approx([1 + 2 * np.exp(-1 / np.e), 1 + np.exp(-8)])


def test_modelled_losses_follow_the_rows_that_each_variant_draws(config):
    first, second = simulate(config()).outcomes[0].records[1:3]
    # 20 draws at 1/2; of the rows of other domains, all 80 of the run would wear to 1/e
    law = 10 * np.exp(-10 / 80) + 10, 10 * np.exp(-10 / 80) + 10
    model = ModelledLosses(start=np.full(2, 1.5), reference=np.ones(2), scale=np.array([54.0, 18.0]), memory=80.0)
    assert list(first["losses"].values()) == pytest.approx(model.losses(np.full(2, 10.0)))
    drawn = np.array(list(second["drawn_by_domain"].values())) - 10
    effective = model.effective_rows(np.full(2, 10.0), drawn)
    assert list(second["losses"].values()) == pytest.approx(model.losses(effective))
    assert effective[0] > law[0]  # more of law than at first


def test_the_model_starts_from_the_measured_losses_where_there_are_any(config):
    curves = {"law": [{"loss": 2.5}, {"loss": 1.2}], "code": [{"loss": None}, {"loss": 0.8}]}
    content = {
        "base_model": {},
        "reference_model": {},
        "unit": "nats per target token",
        "domains": ["law", "code"],
        "reference_losses": {"law": 1.2, "code": 0.8},
        "curves": curves,
        "settings": {},
        "probe": {"rows_per_domain": 8},
        "data": {},
    }
    path = config({"reference_losses": "references.json"})
    assert "references.json does not exist; `versatune references CONFIG` makes it" in refusal(path)
    write_document("references.json", "versatune/references", content)
    simulation = simulate(path)
    assert simulation.outcomes[0].records[0]["losses"] == pytest.approx({"law": 2.5, "code": 1.5 * 0.8})
    assert "references.json was read without checking that it is of this model" in format_simulation(simulation)


def test_without_reference_losses_the_model_says_what_it_takes_instead(config):
    simulation = simulate(config({"reference_losses": "self"}))
    words = " ".join(format_simulation(simulation).split())
    assert "from 2 towards 1, as no reference losses are known: law 2 -> 1, code 2 -> 1." in words


def test_training_batches_tell_nothing_before_the_first_step_nor_of_what_is_not_drawn(config):
    block = {"signal": "train", "initial_proportions": {"law": 1.0, "code": 0.0}}
    records = simulate(config(block)).outcomes[0].records
    assert records[0]["losses"] is None
    assert records[1]["losses"]["law"] < 1.5
    assert np.isnan(records[1]["losses"]["code"])
    assert not any(record["skipped"] for record in records)
