"""One small real Axolotl run per strategy; its history is recomputed here from its own recorded losses, naively."""

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("axolotl")

from tests.hosts import runs
from tests.hosts.axolotl.commands import RECORDED, train
from tests.tiny import DOMAINS, NUM_ROWS, axolotl_config
from versatune_plugin.strategies import STRATEGIES

LAW, MEDICINE, CODE = range(3)
ROWS = np.array([NUM_ROWS[domain] for domain in DOMAINS], dtype=float)
EVEN = np.full(3, 1 / 3)
STEPS, INTERVAL, BLOCK = 16, 3, 4
REFERENCES = {"law": 2.0, "medicine": 3.0, "code": 2.5}
UNIFORM = {"initial_proportions": "uniform"}
LEARNING = UNIFORM | {"reference_losses": REFERENCES, "sigma": 0.8}
GENERAL = {"stages": {"general": "code"}}

BLOCKS = {
    "versatune": LEARNING,
    "uniform": {},
    "proportional": {},
    "temperature": {},
    "unimax": {"guards": {"max_passes": 0.9}},
    "manual": {"initial_proportions": {"law": 0.2, "medicine": 0.3, "code": 0.5}},
    "constant": {"initial_proportions": {"law": 0.5, "medicine": 0.3, "code": 0.2}},
    "inverse": {"initial_proportions": {"law": 0.5, "medicine": 0.3, "code": 0.2}},
    "specific": {"expansion": {"domain": "medicine", "share": 0.7}},
    "increase_uniform": UNIFORM | {"expansion": {"domain": "medicine", "delta": 0.2}},
    "increase_unconditional": LEARNING | {"expansion": {"domain": "medicine", "delta": 0.2}},
    "multitask": {},
    "sequential": GENERAL,
    "mixed_sequential": GENERAL,
    "dmt": {"stages": {"general": "code", "kappa": 0.25}},
    "odm": {"odm": {"alpha": 0.25, "warm_up": 0.2}},
    "dynamic_batch_loading": UNIFORM | {"reference_losses": REFERENCES},
    # more ways to run them
    "expansion": LEARNING
    | {
        "strategy": "versatune",
        "initial_proportions": {"law": 0.05, "medicine": 0.9, "code": 0.05},
        "expansion": {"domain": "medicine", "delta": 0.02, "epsilon": 0.01, "ceiling": 0.98},
    },
    "started high": LEARNING
    | {
        "strategy": "versatune",
        "expansion": {
            "domain": "medicine",
            "delta": 0.05,
            "epsilon": 0.01,
            "start": 0.9,
            "ceiling": 0.9,
        },
        "probe": {"rows_per_domain": 12},
    },
    "two targets": LEARNING | {"strategy": "versatune", "expansion": {"domain": ["medicine", "law"], "delta": 0.05}},
    "trained": LEARNING | {"strategy": "versatune", "signal": "train"},
}


@pytest.fixture(scope="module")
def outputs(workspace, tmp_path_factory):
    """The output directory of each run."""
    folder = tmp_path_factory.mktemp("strategies")
    for name, block in BLOCKS.items():
        more = {} if block.get("signal") == "train" or name == "odm" else {"probe": {"rows_per_domain": 6}}
        changes = {"max_steps": STEPS, "save_strategy": "no", "warmup_steps": 2}
        config = axolotl_config(workspace, folder / name / "out", **RECORDED, **changes)
        del config["save_steps"]
        config["versatune"] = {"strategy": name, "update_interval": INTERVAL} | more | block
        train(config, folder / name)
    return {name: folder / name / "out" for name in BLOCKS}


def vectors(record, *keys):
    return [np.array([record[key][domain] for domain in DOMAINS], dtype=float) for key in keys]


def updates(output_dir):
    """(record before, record) of every update, the measurement at the end left out."""
    return [pair for pair in pairwise(runs.history(output_dir)) if pair[1]["step"] % INTERVAL == 0]


def test_every_strategy_has_a_run_here():
    assert set(STRATEGIES) <= set(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_history_counts_the_rows_that_were_trained_on_and_every_change_acts(name, outputs):
    records = runs.history(outputs[name])
    rows = [row for step in runs.stream(outputs[name]).values() for rank in step for batch in rank for row in batch]
    assert len(rows) == records[-1]["num_drawn"] == STEPS * BLOCK
    realised = np.zeros(3)
    for before, record in pairwise(records):
        assert record["proportions_before"] == before["proportions"]
        assert (record["acts_at_draw"] is not None) == (record["proportions"] != record["proportions_before"])
        drawn, previously = (np.array([r["drawn_by_domain"][d] for d in DOMAINS]) for r in (record, before))
        realised += drawn - previously
    assert sum(realised) == STEPS * BLOCK


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", EVEN),
        ("proportional", ROWS / ROWS.sum()),
        ("temperature", np.sqrt(ROWS) / np.sqrt(ROWS).sum()),
        ("unimax", [0.35234375, 0.35234375, 0.2953125]),  # 0.9 passes of 21 rows in 64 draws
        ("manual", [0.2, 0.3, 0.5]),
        ("constant", [0.5, 0.3, 0.2]),
        ("inverse", np.array([6, 10, 15]) / 31),  # 1/0.5 : 1/0.3 : 1/0.2
        ("specific", [0.15, 0.7, 0.15]),
        ("multitask", ROWS / ROWS.sum()),
    ],
)
def test_fixed_proportions_stay_and_are_drawn(name, expected, outputs):
    for record in runs.history(outputs[name]):
        assert vectors(record, "proportions")[0] == pytest.approx(expected, abs=1e-12)
    drawn = np.array([record["drawn_by_domain"][domain] for domain in DOMAINS])
    assert np.abs(drawn - STEPS * BLOCK * np.asarray(expected)).max() < 1


@pytest.mark.parametrize("name", ["versatune", "trained"])
def test_fostering_follows_from_the_recorded_losses(name, outputs):
    for _, record in updates(outputs[name]):
        losses, before, after = vectors(record, "losses", "proportions_before", "proportions")
        potential = np.maximum((losses - list(REFERENCES.values())) / losses, 0)
        raised = before * (1 + 0.8 * potential)
        assert after == pytest.approx(raised / raised.sum(), abs=1e-12)
    assert after.max() > 1 / 3 + 0.01


def test_training_losses_are_recorded_as_such(outputs):
    for name in ("trained", "odm"):
        first, *later = runs.history(outputs[name])
        assert {record["signal"] for record in later} == {"train"}
        assert first["losses"] is None
        assert all(loss > 0 for record in later for loss in record["losses"].values())


def expansion_of(previous, record, delta, epsilon):
    """Both sides of the test, the fostered proportions and those with the target moved by delta, recomputed."""
    losses, before = vectors(record, "losses", "proportions_before")
    was = vectors(previous, "losses")[0]
    potential = np.maximum((losses - list(REFERENCES.values())) / losses, 0)
    forgetting = np.maximum((losses - was) / was, 0)
    left, right = (forgetting[LAW] + forgetting[CODE]) / 3, epsilon * potential[MEDICINE]
    raised = before * (1 + 0.8 * potential)
    moved = raised / (raised[LAW] + raised[CODE]) * (1 - before[MEDICINE] - delta)
    moved[MEDICINE] = before[MEDICINE] + delta
    return left, right, raised / raised.sum(), moved


def test_expansion_raises_the_target_exactly_where_its_test_holds(outputs):
    branches = []
    for previous, record in updates(outputs["expansion"]):
        left, right, fostered, moved = expansion_of(previous, record, 0.02, 0.01)
        assert record["test"] == pytest.approx({"left": left, "right": right}, abs=1e-12)
        assert record["expanded"] == (left < right)
        assert vectors(record, "proportions")[0] == pytest.approx(moved if left < right else fostered, abs=1e-12)
        branches.append(record["expanded"])
    assert set(branches) == {True, False}, "the run should show both branches"


def test_expansion_that_starts_high_comes_down_where_the_others_forget(outputs):
    first, *_ = runs.history(outputs["started high"])
    assert vectors(first, "proportions")[0] == pytest.approx([0.05, 0.9, 0.05], abs=1e-12)
    lowered = 0
    for previous, record in updates(outputs["started high"]):
        share = record["proportions_before"]["medicine"]
        left, right, *_ = expansion_of(previous, record, 0.0, 0.01)
        delta = min(0.05, 0.9 - share) if left < right else -0.05
        *_, moved = expansion_of(previous, record, delta, 0.01)
        assert record["test"] == pytest.approx({"left": left, "right": right}, abs=1e-12)
        if delta:  # at its ceiling the target is fostered, and held there
            assert vectors(record, "proportions")[0] == pytest.approx(moved, abs=1e-12)
        else:
            assert record["proportions"]["medicine"] <= 0.9 + 1e-12
        lowered += delta < 0
    assert lowered


def test_expansion_says_in_its_log_line_what_it_compared(outputs):
    log = (outputs["expansion"].parent / "log.txt").read_text()
    for _, record in updates(outputs["expansion"]):
        sign = "<" if record["expanded"] else ">="
        compared = f"others forgot {record['test']['left']:.3g} {sign} 0.01 x {record['potential']['medicine']:.3g}"
        assert f"{'medicine raised' if record['expanded'] else 'no step for medicine'}: {compared}" in log


def test_two_targets_rise_together_by_their_potential(outputs):
    raised = [record for _, record in updates(outputs["two targets"]) if record["expanded"]]
    assert raised
    for record in raised:
        losses, before, after = vectors(record, "losses", "proportions_before", "proportions")
        potential = np.maximum((losses - list(REFERENCES.values())) / losses, 0)[[LAW, MEDICINE]]
        rise = min(0.05, 0.8 - before[[LAW, MEDICINE]].sum())
        expected = before[[LAW, MEDICINE]] + rise * potential / potential.sum()
        assert after[[LAW, MEDICINE]] == pytest.approx(expected, abs=1e-12)


def test_unconditional_increase_is_expansion_without_its_test(outputs):
    for _, record in updates(outputs["increase_unconditional"])[:2]:  # 1/3 + 0.2 + 0.2 stays below the ceiling
        losses, before, after = vectors(record, "losses", "proportions_before", "proportions")
        raised = before * (1 + 0.8 * np.maximum((losses - list(REFERENCES.values())) / losses, 0))
        expected = raised / (raised[LAW] + raised[CODE]) * (1 - before[MEDICINE] - 0.2)
        expected[MEDICINE] = before[MEDICINE] + 0.2
        assert after == pytest.approx(expected, abs=1e-12)
        assert record["test"] is None


def test_uniform_increase_rises_to_its_ceiling_and_splits_the_rest_evenly(outputs):
    shares = [vectors(record, "proportions")[0] for _, record in updates(outputs["increase_uniform"])]
    assert [share[MEDICINE] for share in shares] == pytest.approx([1 / 3 + 0.2, 1 / 3 + 0.4, 0.8, 0.8, 0.8], abs=1e-12)
    assert [share[LAW] for share in shares] == pytest.approx([share[CODE] for share in shares], abs=1e-12)


# stages of 16 steps by rows: law 60, medicine 35, code 21 of 116
@pytest.mark.parametrize(
    ("name", "begins", "stages"),
    [
        # 16 * 60/116 = 8.3, 16 * 95/116 = 13.1
        ("sequential", [8, 13], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("mixed_sequential", [13], [[60 / 95, 35 / 95, 0], [0, 0, 1]]),
        # stage 2 has 21 + 95/4 = 44.75 rows: 16 * 95/139.75 = 10.9
        ("dmt", [11], [[60 / 95, 35 / 95, 0], [15 / 44.75, 8.75 / 44.75, 21 / 44.75]]),
    ],
)
def test_stages_begin_at_their_step_and_train_on_their_own_rows(name, begins, stages, outputs):
    records = {record["step"]: record for record in runs.history(outputs[name])}
    starts, ends = [0, *begins], [*begins, STEPS]
    for number, (start, end, expected) in enumerate(zip(starts, ends, stages, strict=True), start=1):
        record = records[start]
        assert vectors(record, "proportions")[0] == pytest.approx(expected, abs=1e-12)
        if start:
            assert record["acts_at_draw"] == start * BLOCK
            assert record["note"].startswith(f"stage {number}/{len(stages)} begins: ")
        drawn = vectors(records[end], "drawn_by_domain")[0] - vectors(record, "drawn_by_domain")[0]
        assert drawn.sum() == (end - start) * BLOCK
        # a domain that earlier stages rounded down is made good
        assert np.abs(drawn - (end - start) * BLOCK * np.asarray(expected)).max() < 2
        assert (drawn[np.asarray(expected) == 0] == 0).all()
    log = (outputs[name].parent / "log.txt").read_text()
    assert f"{len(stages)} stages in {STEPS} steps: " in log


def test_odm_is_the_bandit_of_the_recorded_training_losses(outputs):
    estimates, previous_rate = np.zeros(3), None
    for turn, (_, record) in enumerate(updates(outputs["odm"]), start=1):
        losses, before, after = vectors(record, "losses", "proportions_before", "proportions")
        rate = min(1 / 3, np.sqrt(np.log(3) / (3 * turn)))
        if record["step"] <= 0.2 * STEPS:
            assert after == pytest.approx(EVEN, abs=1e-12)
        else:
            estimates = 0.25 * estimates + 0.75 * losses / np.maximum(before, previous_rate)
            weights = np.exp(previous_rate * estimates)
            assert after == pytest.approx((1 - 3 * rate) * weights / weights.sum() + rate, abs=1e-12)
        previous_rate = rate
    assert turn == 5


def test_dynamic_batch_loading_follows_from_the_recorded_losses(outputs):
    for _, record in updates(outputs["dynamic_batch_loading"]):
        losses, before, after = vectors(record, "losses", "proportions_before", "proportions")
        raised = before * np.exp(np.maximum(losses - list(REFERENCES.values()), 0))
        assert after == pytest.approx(raised / raised.sum(), abs=1e-12)
