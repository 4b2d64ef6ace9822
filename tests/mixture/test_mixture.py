import json
import logging

import numpy as np
import pytest

from versatune_plugin.mixture.guards import Guards
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.strategies import Decision, Expansion, Fixed, Fostering, IncreaseUniform, Strategy

DOMAINS = ("law", "medicine", "code")
REFERENCES = np.array([1.0, 1.2, 1.1])
START = np.array([0.5, 0.3, 0.2])


FOSTERING = Fostering(sigma=0.5)


def make_mixture(strategy=FOSTERING, proportions=START, references=REFERENCES):
    return Mixture(DOMAINS, strategy, proportions, references)


def test_an_update_sets_the_proportions_of_the_worked_example():
    # potentials (0.5, 0.2, 0), sigma 0.5: P' = (0.625, 0.33, 0.2), sum 1.155
    mixture = make_mixture()
    update = mixture.update(np.array([2.0, 1.5, 1.0]), step=50)
    assert update.potential == pytest.approx([0.5, 0.2, 0.0], abs=1e-12)
    assert update.proportions_before.tolist() == START.tolist()
    assert update.proportions == pytest.approx(np.array([0.625, 0.33, 0.2]) / 1.155, abs=1e-12)
    assert mixture.proportions.tolist() == update.proportions.tolist()
    assert update.skipped is None


def test_an_observation_changes_nothing_but_is_what_the_next_update_compares_with():
    mixture = make_mixture()
    observed = mixture.observe(np.array([1.9, 1.6, 1.5]))
    assert observed.proportions.tolist() == mixture.proportions.tolist() == START.tolist()
    assert observed.forgetting.tolist() == [0, 0, 0]
    update = mixture.update(np.array([2.0, 1.5, 1.4]), step=1)
    assert update.forgetting == pytest.approx([1 / 19, 0, 0], abs=1e-12)


@pytest.mark.parametrize("first", ["probe", "train"])
def test_losses_of_another_signal_are_not_compared(first):
    """A resumed run may measure held-out rows first and training batches then, or the other way round."""
    pieces = np.ones((3, 4, 3))
    given = {"probe": pieces, "train": None}
    mixture = Mixture(DOMAINS, FOSTERING, START, own_reference=True)
    mixture.observe(np.array([1.0, 1.0, 1.0]), given[first])
    mixture.update(np.array([1.5, 1.0, 1.0]), 1, given[first])
    second = mixture.update(np.array([3.0, 3.0, 3.0]), 2, given["train" if first == "probe" else "probe"])
    assert second.forgetting.tolist() == second.forgetting_since_start.tolist() == [0, 0, 0]
    assert second.potential.tolist() == [0, 0, 0], "a loss of the other signal is no reference"


def test_a_mapping_of_proportions_is_put_in_domain_order():
    mixture = make_mixture(proportions={"code": 0.2, "medicine": 0.3, "law": 0.5})
    assert mixture.proportions.tolist() == START.tolist()


def test_a_fixed_strategy_keeps_every_bit_and_needs_no_references():
    mixture = make_mixture(Fixed(), references=None)
    update = mixture.update(np.array([2.0, 1.5, 1.0]), step=50)
    assert update.proportions.tolist() == START.tolist()
    assert update.potential is None
    assert update.losses.tolist() == [2.0, 1.5, 1.0]


def test_a_run_without_probes_reports_the_proportions_alone():
    update = make_mixture(Fixed(), references=None).unmeasured()
    assert update.losses is update.potential is update.forgetting is None
    assert update.proportions.tolist() == update.proportions_before.tolist() == START.tolist()


def test_fostering_without_reference_losses_is_refused():
    with pytest.raises(ValueError, match="Fostering needs reference losses"):
        make_mixture(references=None)


def test_a_start_at_zero_warns_that_the_domain_is_never_drawn(caplog):
    make_mixture(proportions=np.array([0.5, 0.0, 0.5]))
    assert caplog.messages == ["domain 'medicine' starts at proportion 0 and will never be drawn"]


# --- sick losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), 0.0, -1.0])
def test_a_sick_loss_skips_the_update_of_all_domains_with_one_warning(loss, caplog):
    mixture = make_mixture()
    with caplog.at_level(logging.WARNING):
        update = mixture.update(np.array([2.0, loss, 1.0]), step=50)
    assert update.proportions.tolist() == mixture.proportions.tolist() == START.tolist()
    assert update.potential is update.forgetting is None
    assert update.skipped == f"domain 'medicine' has loss {loss}"
    assert caplog.messages == [f"update skipped, proportions stay: domain 'medicine' has loss {loss}"]


def test_every_sick_domain_is_named(caplog):
    update = make_mixture().update(np.array([np.nan, 1.0, -1.0]), step=50)
    assert "'law' has loss nan" in update.skipped
    assert "'code' has loss -1.0" in update.skipped
    assert "medicine" not in update.skipped
    assert len(caplog.messages) == 1


def test_after_a_sick_loss_forgetting_is_measured_from_the_last_good_one():
    mixture = make_mixture()
    mixture.observe(np.array([1.9, 1.6, 1.5]))
    mixture.update(np.array([np.nan, 9.0, 9.0]), step=1)
    update = mixture.update(np.array([2.0, 1.5, 1.4]), step=2)
    assert update.forgetting == pytest.approx([1 / 19, 0, 0], abs=1e-12)
    assert update.skipped is None


def test_what_an_update_returned_stays_when_the_next_one_comes():
    mixture, losses = make_mixture(), np.array([2.0, 1.5, 1.0])
    update = mixture.update(losses, step=1)
    kept = update.proportions.copy()
    losses[:] = 9
    mixture.update(np.array([1.0, 5.0, 1.0]), step=2)
    assert update.proportions.tolist() == kept.tolist()
    assert update.losses.tolist() == [2.0, 1.5, 1.0]


class Seeing(Fixed):
    """Keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def decide(self, observation):
        self.seen.append(observation)
        return super().decide(observation)


def test_forgetting_since_the_start_is_counted_from_the_first_good_losses():
    strategy = Seeing()
    mixture = Mixture(DOMAINS, strategy, START)
    mixture.observe(np.array([np.nan, 1.0, 1.0]))
    mixture.observe(np.array([2.0, 1.0, 1.0]))
    mixture.update(np.array([1.0, 1.5, 1.0]), step=1)
    restored = Mixture(DOMAINS, strategy, START)
    restored.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
    restored.update(np.array([2.5, 1.4, 0.5]), step=2)
    assert [seen.forgetting_since_start.tolist() for seen in strategy.seen] == [
        pytest.approx([0, 0.5, 0], abs=1e-12),
        pytest.approx([0.25, 0.4, 0], abs=1e-12),
    ]
    assert strategy.seen[1].forgetting == pytest.approx([1.5, 0, 0], abs=1e-12)


def test_training_losses_count_from_when_a_domain_was_first_drawn():
    strategy = Seeing()
    mixture = Mixture(DOMAINS, strategy, [0.5, 0.5, 0.0], of_training=True)
    for step, loss in enumerate([np.nan, 1.0, 1.2], 1):
        mixture.update(np.array([2.0, 1.0, loss]), step=step)
    assert [seen.forgetting_since_start[2] for seen in strategy.seen] == pytest.approx([0, 0, 0.2], abs=1e-12)


# --- saved state --------------------------------------------------------------------------------------------


def test_a_mixture_restored_through_json_goes_on_bit_for_bit():
    rng = np.random.default_rng(0)
    measured = rng.uniform(0.5, 3, size=(20, 3))
    unbroken, stopped = make_mixture(), make_mixture()
    for step, losses in enumerate(measured):
        if step in (0, 1, 7, 8):
            state = json.loads(json.dumps(stopped.state_dict()))
            stopped = make_mixture(proportions=[1.0, 0.0, 0.0])
            stopped.load_state_dict(state)
        expected, got = unbroken.update(losses, step), stopped.update(losses, step)
        assert got.proportions.tolist() == expected.proportions.tolist()
        assert got.forgetting.tolist() == expected.forgetting.tolist()


def test_a_state_of_other_domains_is_refused():
    state = make_mixture().state_dict()
    other = Mixture(("law", "code", "medicine"), Fixed(), START)
    with pytest.raises(ValueError, match=r"domains \['law', 'medicine', 'code'\], this run has \['law', 'code'"):
        other.load_state_dict(state)


def test_a_state_of_another_version_is_refused():
    state = make_mixture().state_dict() | {"version": 99}
    with pytest.raises(ValueError, match="version 99, this release reads 5"):
        make_mixture().load_state_dict(state)


# --- its own reference --------------------------------------------------------------------------------------


def own(proportions=START):
    return Mixture(DOMAINS, FOSTERING, proportions, own_reference=True)


def test_own_reference_is_the_lowest_loss_so_far_and_potential_is_zero_at_a_new_best():
    mixture = own()
    assert mixture.observe(np.array([2.0, 1.5, 1.0])).potential.tolist() == [0, 0, 0]
    update = mixture.update(np.array([2.5, 1.0, 1.25]), step=1)
    assert mixture.reference_losses.tolist() == [2.0, 1.0, 1.0]
    assert update.potential == pytest.approx([0.2, 0.0, 0.2], abs=1e-12)


def test_own_reference_does_not_learn_from_a_sick_loss():
    mixture = own()
    mixture.observe(np.array([2.0, 1.5, 1.0]))
    mixture.update(np.array([1.0, np.nan, 0.5]), step=1)
    assert mixture.reference_losses.tolist() == [2.0, 1.5, 1.0]


def test_own_reference_restored_through_json_goes_on_bit_for_bit():
    unbroken, stopped = own(), own()
    for step, losses in enumerate(np.random.default_rng(1).uniform(0.5, 3, size=(12, 3))):
        if step in (0, 5):
            state = json.loads(json.dumps(stopped.state_dict()))
            stopped = own()
            stopped.load_state_dict(state)
        assert stopped.update(losses, step).proportions.tolist() == unbroken.update(losses, step).proportions.tolist()
    assert stopped.reference_losses.tolist() == unbroken.reference_losses.tolist()


def test_given_reference_losses_and_its_own_are_not_mixed():
    with pytest.raises(ValueError, match="reference losses or its own, not both"):
        Mixture(DOMAINS, FOSTERING, START, REFERENCES, own_reference=True)


# --- guards ---------------------------------------------------------------------------------------------


def test_guards_bound_what_the_strategy_proposes_and_the_proposal_is_kept():
    mixture = Mixture(DOMAINS, FOSTERING, START, REFERENCES, guards=Guards(ceiling=np.array([0.5, 1, 1])))
    update = mixture.update(np.array([2.0, 1.5, 1.0]), step=50)
    proposed = np.array([0.625, 0.33, 0.2]) / 1.155  # law would pass 0.5; 0.33 : 0.2 stays
    assert update.proposed == pytest.approx(proposed, abs=1e-12)
    assert update.proportions == pytest.approx([0.5, 0.5 * 0.33 / 0.53, 0.5 * 0.2 / 0.53], abs=1e-12)
    assert make_mixture().update(np.array([2.0, 1.5, 1.0]), step=50).proposed is None


def test_caps_of_the_moment_bound_the_proportions_too():
    mixture = Mixture(DOMAINS, FOSTERING, START, REFERENCES, guards=Guards(max_passes=1))
    update = mixture.update(np.array([2.0, 1.5, 1.0]), step=50, caps=np.array([1, 1, 0.1]))
    assert update.proportions == pytest.approx([0.9 * 0.625 / 0.955, 0.9 * 0.33 / 0.955, 0.1], abs=1e-12)


# --- training losses, pieces, strategies without losses -----------------------------------------------------


def of_training(proportions):
    return Mixture(DOMAINS, FOSTERING, proportions, REFERENCES, of_training=True)


def test_a_domain_that_is_never_drawn_has_no_training_loss_and_steers_nothing():
    mixture = of_training([0.5, 0.5, 0.0])
    update = mixture.update(np.array([2.0, 1.5, np.nan]), step=1)
    assert update.skipped is None
    assert update.potential.tolist()[2] == update.forgetting.tolist()[2] == 0
    # (0.5 * 1.25, 0.5 * 1.1, 0), normalised
    assert update.proportions == pytest.approx([0.625 / 1.175, 0.55 / 1.175, 0], abs=1e-12)


def test_a_drawn_domain_without_a_training_loss_yet_skips_the_update():
    update = of_training(START).update(np.array([2.0, 1.5, np.nan]), step=1)
    assert update.skipped == "domain 'code' has been trained on no target token yet"


def test_a_domain_at_zero_without_a_probe_loss_still_skips_the_update():
    assert make_mixture(proportions=[0.5, 0.5, 0.0]).update(np.array([2.0, 1.5, np.nan]), step=1).skipped


def pieces(law):
    """Two rows of one token each per domain; only law's losses matter."""
    return np.array([[[law[0], 1, 1], [law[1], 1, 1]], np.ones((2, 3)), np.ones((2, 3))])


def test_the_error_of_a_change_is_told_from_pieces_of_this_measurement_and_the_last_good_one():
    mixture = make_mixture()
    mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    mixture.update(np.array([np.nan, 1, 1]), 1, pieces([np.nan, 1.0]))
    state = json.loads(json.dumps(mixture.state_dict()))
    mixture = make_mixture()
    mixture.load_state_dict(state)
    update = mixture.update(np.array([1.75, 1, 1]), 2, pieces([1.5, 2.0]))
    # R = 3.5/3; residuals 1.5 - R * 1 = 1/3 and 2 - R * 2 = -1/3, of rows with 1/3 and 2/3 of the loss before:
    # (1/9 / (2/3) + 1/9 / (1/3)) / 3**2 = 0.5 / 9
    assert update.forgetting_error == pytest.approx([np.sqrt(0.5) / 3, 0, 0], abs=1e-12)


def test_the_change_since_the_start_is_of_measured_losses_and_has_the_error_of_a_change_on_the_same_rows():
    mixture = make_mixture()
    first = mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    assert first.change_since_start.tolist() == first.change_since_start_error.tolist() == [0, 0, 0]
    mixture.update(np.array([1.6, 1, 1]), 1, pieces([1.2, 2.0]))
    state = json.loads(json.dumps(mixture.state_dict()))
    mixture = make_mixture()
    mixture.load_state_dict(state)
    update = mixture.update(np.array([1.75, 0.5, 1]), 2, pieces([1.5, 2.0]))
    assert update.change_since_start == pytest.approx([0.25 / 1.5, -0.5, 0], abs=1e-12)
    assert update.change_since_start_error[0] == pytest.approx(np.sqrt(0.5) / 3, abs=1e-12)  # as in the test above


@pytest.mark.parametrize("needs_losses", [True, False])
def test_a_sick_domain_leaves_the_others_their_change_since_the_start(needs_losses):
    rising = Mixture(DOMAINS, IncreaseUniform(targets=(1,), delta=0.1), START, num_steps=10)
    mixture = make_mixture() if needs_losses else rising
    assert mixture.observe(np.array([np.nan, 1, 1]), pieces([np.nan, 2.0])).change_since_start is None
    mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    update = mixture.update(np.array([np.nan, 0.5, 1]), 1, pieces([np.nan, 2.0]))
    assert bool(update.skipped) == needs_losses
    assert update.change_since_start.tolist() == pytest.approx([np.nan, -0.5, 0], nan_ok=True)
    assert update.change_since_start_error.tolist() == pytest.approx([np.nan, 0, 0], nan_ok=True)
    assert np.isnan(update.loss_errors[0])


def test_the_change_since_the_start_begins_anew_with_other_probe_rows():
    mixture = make_mixture()
    mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    others = pieces([1.0, 2.0])
    others[1, 0, 0] = 7
    update = mixture.update(np.array([3.0, 2, 1]), 1, others)
    assert update.change_since_start.tolist() == update.change_since_start_error.tolist() == [0, 0, 0]


def test_losses_come_with_their_errors_also_where_an_update_is_skipped():
    mixture = make_mixture()
    assert mixture.observe(np.array([1.5, 1, 1])).loss_errors is None
    # two rows with losses 1 and 2: standard deviation sqrt(1/2), over sqrt(2)
    observed = mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    assert observed.loss_errors == pytest.approx([0.5, 0, 0], abs=1e-12)
    skipped = mixture.update(np.array([np.nan, 1, 1]), 1, pieces([np.nan, 2.0]))
    assert np.isnan(skipped.loss_errors[0])
    assert skipped.loss_errors[1:].tolist() == [0, 0]


def test_a_strategy_that_needs_no_losses_goes_on_without_them(caplog):
    mixture = Mixture(DOMAINS, IncreaseUniform(targets=(1,), delta=0.1), START, num_steps=10)
    assert mixture.advance(1).proportions == pytest.approx([0.3, 0.4, 0.3], abs=1e-12)
    update = mixture.update(np.array([np.nan, 1, 1]), step=2)
    assert update.proportions == pytest.approx([0.25, 0.5, 0.25], abs=1e-12)
    assert update.skipped is None
    assert caplog.messages == ["a loss that cannot be used: domain 'law' has loss nan"]


def test_a_target_that_starts_at_zero_is_no_cause_to_warn(caplog):
    Mixture(DOMAINS, Expansion(0.5, (1,), 0.1, 0.5), [0.5, 0.0, 0.5], REFERENCES)
    assert caplog.messages == []


def test_what_is_not_known_of_a_domain_never_becomes_its_history():
    mixture = Mixture(DOMAINS, Fixed(), [0.5, 0.5, 0.0], own_reference=True, of_training=True)
    mixture.observe(np.array([4.0, 2.0, np.nan]))
    state = json.loads(json.dumps(mixture.state_dict(), allow_nan=False))
    mixture.load_state_dict(state)
    assert np.isnan(mixture.reference_losses[2])
    update = mixture.update(np.array([4.0, 2.0, 5.0]), step=1)
    assert update.forgetting.tolist() == [0, 0, 0]
    assert mixture.reference_losses.tolist() == [4.0, 2.0, 5.0]


class Remembers(Strategy):
    def __init__(self, memory):
        self.remembered = memory

    def decide(self, observation):
        return Decision(proportions=observation.proportions, memory=self.remembered)


@pytest.mark.parametrize("memory", [np.ones(2), {1, 2}, float("nan")])
def test_memory_that_is_no_json_is_an_error_that_names_the_strategy(memory):
    with pytest.raises(ValueError, match="the memory of strategy Remembers must be plain JSON"):
        make_mixture(Remembers(memory)).update(np.ones(3), step=1)


def test_memory_is_at_once_what_it_would_be_after_a_resume():
    mixture = make_mixture(Remembers({1: (2, 3)}))
    mixture.update(np.ones(3), step=1)
    assert mixture.state_dict()["memory"] == {"1": [2, 3]}


def test_memory_of_another_strategy_is_not_taken_over():
    mixture = make_mixture(Remembers([1, 2]))
    mixture.update(np.ones(3), step=1)
    other = make_mixture()
    other.load_state_dict(mixture.state_dict())
    assert other.state_dict()["memory"] is None


def test_pieces_of_other_rows_are_not_compared():
    mixture = make_mixture()
    mixture.observe(np.array([1.5, 1, 1]), pieces([1.0, 2.0]))
    others = pieces([1.0, 2.0])
    others[1, 0, 0] = 7
    assert mixture.update(np.ones(3), 1, others).forgetting_error is None
    assert mixture.update(np.ones(3), 2, np.ones((3, 4, 3))).forgetting_error is None


def test_a_strategy_that_writes_into_what_it_sees_changes_nothing_else():
    class Writes(Strategy):
        def decide(self, observation):
            observation.losses[:] = 100
            observation.proportions[:] = 0
            return Decision(proportions=START)

    mixture = make_mixture(Writes())
    mixture.update(np.array([2.0, 1.5, 1.0]), step=1)
    update = mixture.update(np.array([2.0, 1.5, 1.1]), step=2)
    assert update.forgetting == pytest.approx([0, 0, 0.1], abs=1e-12)
    assert update.proportions_before.tolist() == START.tolist()
