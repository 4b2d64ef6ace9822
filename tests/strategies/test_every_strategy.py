"""What holds for every strategy by name, built from a block and run through a mixture as in training."""

import json

import numpy as np
import pytest

from tests.resolving import initial_vector, references_in, strategy_of
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.settings import build_guards
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.strategies import STRATEGIES

DOMAINS = ("law", "medicine", "code", "general")
NUM_ROWS = dict(zip(DOMAINS, (600, 250, 40, 1000), strict=True))
NUM_STEPS, INTERVAL = 200, 5
START = {"law": 0.4, "medicine": 0.1, "code": 0.2, "general": 0.3}
REFERENCES = {"law": 1.0, "medicine": 1.5, "code": 0.7, "general": 2.0}
TARGET = {"domain": ["medicine"], "delta": 0.03}
RISE = {"expansion": TARGET}
LEARNING = {"initial_proportions": START, "reference_losses": REFERENCES}
BLOCKS = {
    "versatune": LEARNING,
    "manual": {"initial_proportions": START},
    "constant": {"initial_proportions": START},
    "inverse": {"initial_proportions": START},
    "specific": {"expansion": {"domain": "medicine", "share": 0.6}},
    "increase_uniform": {"initial_proportions": START} | RISE,
    "increase_unconditional": LEARNING | RISE,
    "sequential": {"stages": {"order": ["medicine", "law", "code", "general"]}},
    "odm": {"initial_proportions": START},
    "dynamic_batch_loading": LEARNING,
    "expansion": LEARNING | {"strategy": "versatune", "expansion": TARGET | {"epsilon": 0.1}},
    "expansion from a high start": LEARNING
    | {
        "strategy": "versatune",
        "expansion": {"domain": ["medicine", "code"], "start": 0.7, "epsilon": 0.05},
    },
    "expansion that holds and comes down": LEARNING
    | {
        "strategy": "versatune",
        "expansion": TARGET | {"start": 0.95, "hold": 0.5, "forgetting_since": "start", "delta": 0.2},
    },
}
BLOCKS = {name: {"strategy": name} | BLOCKS.get(name, {}) for name in {**STRATEGIES, **BLOCKS}}
GUARDS = {"floor": 0.05, "ceiling": {"general": 0.6, "law": 0.6}, "max_change": 0.07}
GUARDED = [
    name for name in BLOCKS if BLOCKS[name]["strategy"] not in ("multitask", "sequential", "mixed_sequential", "dmt")
]


def make_mixture(name, domains=DOMAINS, **changes):
    config = VersaTuneConfig.model_validate(BLOCKS[name] | changes)
    num_rows = {domain: NUM_ROWS[domain] for domain in domains}
    return Mixture(
        domains,
        strategy_of(config, num_rows),
        initial_vector(config, num_rows),
        references_in(config, domains),
        guards=build_guards(config, domains),
        num_steps=NUM_STEPS,
    )


def measured(seed=0):
    """Losses of every domain at every update: falling, with noise that looks like forgetting now and then."""
    random = np.random.default_rng(seed)
    steps = range(INTERVAL, NUM_STEPS + 1, INTERVAL)
    fall = {
        domain: REFERENCES[domain] * 1.8 * np.exp(-random.uniform(0.001, 0.006) * np.array(steps)) for domain in DOMAINS
    }
    return {step: {d: fall[d][n] * random.uniform(0.95, 1.05) for d in DOMAINS} for n, step in enumerate(steps)}


def run(mixture, losses_by_step):
    return [
        mixture.update(np.array([losses[domain] for domain in mixture.domains]), step)
        for step, losses in losses_by_step.items()
    ]


def shares(mixture, updates):
    """Proportions of every update, by domain in the order of DOMAINS."""
    order = [mixture.domains.index(domain) for domain in DOMAINS]
    return np.array([update.proportions[order] for update in updates])


@pytest.mark.parametrize("name", BLOCKS)
def test_proportions_sum_to_one_and_are_never_negative(name):
    mixture = make_mixture(name)
    proportions = shares(mixture, run(mixture, measured()))
    assert np.abs(proportions.sum(axis=1) - 1).max() < 1e-12
    assert (proportions >= 0).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_losses_give_the_same_bits(name):
    one, other = (shares(m, run(m, measured())) for m in (make_mixture(name), make_mixture(name)))
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("order", [(3, 1, 0, 2), (2, 3, 1, 0)])
def test_the_order_of_the_domains_does_not_matter(name, order):
    plain, permuted = make_mixture(name), make_mixture(name, tuple(DOMAINS[j] for j in order))
    expected, got = (run(mixture, measured()) for mixture in (plain, permuted))
    assert shares(permuted, got) == pytest.approx(shares(plain, expected), abs=1e-9)
    assert [update.expanded for update in got] == [update.expanded for update in expected]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_state_that_went_through_json_goes_on_bit_for_bit(name):
    unbroken, stopped, losses = make_mixture(name), make_mixture(name), measured()
    for step in losses:
        if step in (INTERVAL, 8 * INTERVAL, 9 * INTERVAL):
            state = json.dumps(stopped.state_dict(), allow_nan=False)
            stopped = make_mixture(name)
            stopped.load_state_dict(json.loads(state))
        (expected,), (got,) = (run(mixture, {step: losses[step]}) for mixture in (unbroken, stopped))
        assert got.proportions.tolist() == expected.proportions.tolist()
        assert (got.test, got.note, got.expanded) == (expected.test, expected.note, expected.expanded)


@pytest.mark.parametrize("name", GUARDED)
def test_guards_hold_at_every_update(name):
    mixture = make_mixture(name, guards=GUARDS)
    before, ceilings = mixture.proportions.copy(), np.array([0.6, 1, 1, 0.6])
    for update in run(mixture, measured()):
        after = update.proportions
        assert (after >= 0.05 - 1e-12).all()
        assert (after <= ceilings + 1e-12).all()
        assert np.abs(after - before).max() <= 0.07 + 1e-12
        assert after.sum() == pytest.approx(1, abs=1e-12)
        before = after


@pytest.mark.parametrize(
    "name", ["versatune", "expansion", "dynamic_batch_loading", "constant", "increase_unconditional"]
)
def test_a_domain_at_zero_stays_there(name):
    start = {"law": 0.5, "medicine": 0.5, "code": 0.0, "general": 0.0}
    mixture = make_mixture(name, initial_proportions=start)
    proportions = shares(mixture, run(mixture, measured()))
    assert (proportions[:, 2:] == 0).all()


@pytest.mark.parametrize("name", ["versatune", "expansion", "increase_unconditional", "dynamic_batch_loading", "odm"])
def test_the_proportions_do_move(name):
    mixture = make_mixture(name)
    proportions = shares(mixture, run(mixture, measured()))
    assert len(np.unique(proportions, axis=0)) > 10


# --- equivalences -------------------------------------------------------------------------------------------


def paths(one, other):
    """The proportions of two mixtures under the same losses."""
    return [shares(mixture, run(mixture, measured(seed=3))).tolist() for mixture in (one, other)]


def test_expansion_with_epsilon_zero_is_fostering():
    one, other = paths(make_mixture("expansion", expansion=TARGET | {"epsilon": 0.0}), make_mixture("versatune"))
    assert one == other


def test_unconditional_increase_is_expansion_with_a_test_that_always_holds():
    always = make_mixture("expansion", expansion=TARGET | {"epsilon": 1e12})
    one, other = paths(make_mixture("increase_unconditional"), always)
    assert one == other


def test_sigma_zero_is_constant():
    one, other = paths(make_mixture("versatune", sigma=0.0), make_mixture("constant"))
    assert one == other


def test_a_list_with_one_target_is_one_target():
    single = make_mixture("expansion", expansion=TARGET | {"domain": "medicine", "epsilon": 0.1})
    one, other = paths(make_mixture("expansion"), single)
    assert one == other


def test_specific_with_the_whole_share_draws_the_target_alone():
    mixture = make_mixture("specific", expansion={"domain": "medicine"})
    assert shares(mixture, run(mixture, measured())).tolist() == [[0.0, 1.0, 0.0, 0.0]] * (NUM_STEPS // INTERVAL)


def test_guards_that_bound_nothing_change_no_bit():
    wide = {"floor": 0.0, "ceiling": 1.0, "max_change": 1.0, "max_passes": 1000.0}
    one, other = paths(make_mixture("expansion", guards=wide), make_mixture("expansion"))
    assert one == other
