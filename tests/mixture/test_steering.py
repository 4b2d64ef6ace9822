"""Steering without a trainer: a sampler that nobody reads, and losses known in advance."""

import json
import logging

import numpy as np
import pytest

from versatune_plugin.mixture.guards import Guards
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.mixture.steering import LookAhead, Measurement, Steering
from versatune_plugin.sampler import MixtureSampler
from versatune_plugin.strategies import Fostering, mixed_sequential

DOMAINS = ("law", "code")
ROWS = {"law": 100, "code": 50}
BLOCK = 4
START = (0.5, 0.5)
ALL_STEPS = range(41)


def losses_at(step: int) -> np.ndarray:
    """Nats per target token; those of code fall faster."""
    return np.array([4.0 - step / 100, 3.0 - step / 20])


def make(strategy=None, *, look_ahead=2, measure=losses_at, num_steps=40, guards=None) -> Steering:
    """A steering with an update every 10 steps of 4 rows."""
    strategy = strategy or Fostering(sigma=1.0)
    mixture = Mixture(
        DOMAINS,
        strategy,
        strategy.stages[0].proportions if measure is None else START,
        np.array([1.0, 1.0]) if strategy.needs_reference_losses else None,
        guards=guards or Guards(),
        num_steps=num_steps,
    )
    sampler = MixtureSampler(ROWS, mixture.proportions, block_size=BLOCK, num_samples=BLOCK)

    def amounts(first: int, last: int) -> np.ndarray:
        return (sampler.drawn_before(last * BLOCK) - sampler.drawn_before(first * BLOCK))[None]

    return Steering(
        mixture,
        sampler,
        num_steps=num_steps,
        interval=10,
        look_ahead=look_ahead,
        measure=lambda step: None if measure is None else Measurement(losses=measure(step), seconds=0.5),
        amounts=amounts,
    )


def run(steering: Steering, steps=ALL_STEPS) -> list:
    """All turns of a run, or of the steps of one."""
    turns = []
    for step in steps:
        if step == 0:
            steering.begin()
            turns.append(steering.observe(0))
        elif steering.is_due(step):
            turns.append(steering.update(step))
    return turns


def test_an_update_measures_decides_and_acts_after_the_look_ahead():
    steering = make()
    first, second, *_ = run(steering)
    assert (first.step, first.acts_at_draw, first.measured_in_seconds) == (0, None, 0.5)
    assert first.update.proportions.tolist() == list(START)
    potential = 1 - 1 / losses_at(10)
    expected = 0.5 * (1 + potential)
    assert second.update.proportions == pytest.approx(expected / expected.sum(), abs=1e-12)
    assert second.acts_at_draw == (10 + 2) * BLOCK
    assert second.drawn[0].sum() == 10 * BLOCK == second.drawn_since_last[0].sum()


def test_what_was_drawn_adds_up_over_the_turns():
    turns = run(make())
    assert [turn.step for turn in turns] == [0, 10, 20, 30, 40]
    assert sum(turn.drawn_since_last for turn in turns).tolist() == turns[-1].drawn.tolist()
    assert turns[-1].drawn.sum() == 40 * BLOCK


@pytest.mark.parametrize("stop", [10, 20, 30])
def test_a_steering_that_goes_on_from_its_state_decides_the_same_to_the_bit(stop):
    whole = run(make())
    stopped = make()
    run(stopped, range(0, stop + 1))
    again = make()
    again.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    later = run(again, range(stop + 1, 41))
    for turn, other in zip(whole[stop // 10 + 1 :], later, strict=True):
        assert turn.update.proportions.tolist() == other.update.proportions.tolist()
        assert (turn.acts_at_draw, turn.drawn.tolist()) == (other.acts_at_draw, other.drawn.tolist())


def test_a_stage_acts_at_its_own_step_whatever_the_look_ahead():
    stages = mixed_sequential(DOMAINS, ROWS, "code")
    turns = run(make(stages, measure=None, look_ahead=9))
    (changed,) = [turn for turn in turns if turn.update.proportions.tolist() == [0.0, 1.0]][:1]
    assert changed.acts_at_draw == changed.step * BLOCK
    assert turns[-1].drawn[0, 1] == (40 - changed.step) * BLOCK


def test_a_limit_on_passes_caps_what_the_strategy_proposes():
    guards = Guards(max_passes=1.2)
    turns = run(make(Fostering(sigma=5.0), guards=guards, measure=lambda step: np.array([1.0, 9.0])))
    assert any(turn.update.proposed is not None for turn in turns)
    assert turns[-1].drawn[0, 1] <= 1.2 * ROWS["code"]


def test_without_a_measurement_the_proportions_stay():
    steering = make()
    run(steering, [0])
    steering._measure = lambda step: None
    turn = steering.update(10)
    assert (turn.update.losses, turn.acts_at_draw, turn.measured_in_seconds) == (None, None, 0.0)
    assert turn.update.proportions.tolist() == list(START)


def test_a_turn_by_domain_is_what_a_history_line_holds():
    turn = run(make())[1]
    fields = turn.by_domain(DOMAINS)
    assert (fields["step"], fields["num_drawn"]) == (10, 40)
    assert list(fields["losses"]) == list(DOMAINS)
    json.dumps(fields, allow_nan=False)


def test_a_loss_that_is_not_finite_skips_the_update_and_reads_as_unknown(caplog):
    caplog.set_level(logging.WARNING)
    steering = make(measure=lambda step: np.array([2.0, np.nan if step == 10 else 2.0]))
    turn = run(steering, [0, 10])[-1]
    assert "'code' has loss nan" in turn.update.skipped
    assert turn.by_domain(DOMAINS)["losses"] == {"law": 2.0, "code": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 0}, "version 0"),
        ({"feed_kind": "PackedBatchSampler"}, "came in another way"),
        ({"plan": [[5, [1.0, 0.0]]]}, "stages of the checkpoint's run"),
    ],
)
def test_the_state_of_another_run_is_refused(change, words):
    steering = make()
    run(steering, range(0, 11))
    with pytest.raises(ValueError, match=words):
        make().load_state_dict(steering.state_dict() | change)


@pytest.mark.parametrize("part", ["steering", "mixture", "feed"])
def test_a_state_without_one_of_its_keys_is_refused_by_its_name(part):
    state = json.loads(json.dumps(make().state_dict()))
    of_part = state if part == "steering" else state[part]
    key = list(of_part)[-1]
    del of_part[key]
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("workers", "prefetch", "accumulation", "batches", "steps"),
    [(0, None, 1, 1, 1), (2, None, 1, 5, 5), (2, 4, 1, 9, 9), (2, 2, 4, 5, 2)],
)
def test_the_look_ahead_counts_what_the_loader_holds(workers, prefetch, accumulation, batches, steps):
    assert LookAhead.of_loader(workers, prefetch, accumulation) == LookAhead(batches, steps)
