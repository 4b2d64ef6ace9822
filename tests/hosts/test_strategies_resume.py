"""What a strategy, the guards or a signal remember goes on after a resume as if the run had never been stopped."""

import sys
import textwrap

import pytest

pytest.importorskip("trl")

from tests.hosts import inside, runs

SAVING = {"save_strategy": "steps", "save_steps": 3, "max_steps": 14, "loss_type": "nll"}
LEARNING = {
    "strategy": "versatune",
    "initial_proportions": "uniform",
    "reference_losses": runs.VERSATUNE["reference_losses"],
    "update_interval": 2,
}
PROBE = {"probe": {"rows_per_domain": 8}}
TARGET = {"domain": "medicine", "delta": 0.1, "epsilon": 0.05}
STAGES = {"stages": {"general": "code"}, "update_interval": 2, **PROBE}

BLOCKS = {
    "expansion": LEARNING | PROBE | {"expansion": TARGET},
    "expansion from a high start": LEARNING | PROBE | {"expansion": TARGET | {"start": 0.8}},
    "sequential": {"strategy": "sequential"} | STAGES,
    "dmt": {"strategy": "dmt"} | STAGES | {"stages": {"general": "code", "kappa": 0.5}},
    "odm": {"strategy": "odm", "update_interval": 2},
    "training losses": LEARNING | {"signal": "train"},
    "guards": LEARNING
    | PROBE
    | {
        "sigma": 5.0,
        "reference_losses": {"law": 6.0, "medicine": 6.0, "code": 0.5},  # code is wanted most and has fewest rows
        "guards": {"floor": 0.1, "max_passes": 0.45, "max_change": 0.2},
    },
    "increase without losses, within passes": {
        "strategy": "increase_uniform",
        "initial_proportions": "uniform",
        "update_interval": 2,
        "expansion": {"domain": "code", "delta": 0.1},
        "guards": {"max_passes": 0.5},
        "probe": {"rows_per_domain": 0},
    },
    "training losses with a domain at zero": LEARNING
    | {"signal": "train", "initial_proportions": {"law": 0.5, "medicine": 0.5, "code": 0.0}},
    "own": {"strategy": "turns:Turns", "initial_proportions": "uniform", "update_interval": 2} | PROBE,
}

TURNS = """
    import numpy as np
    from versatune_plugin.strategies import Decision, Strategy

    class Turns(Strategy):
        def decide(self, observation):
            turn = (observation.memory or 0) + 1
            shares = np.roll([0.6, 0.3, 0.1], turn)
            return Decision(proportions=shares, note=f"turn {turn}", memory=turn)

    class Chance(Strategy):
        def decide(self, observation):
            return Decision(proportions=np.random.default_rng().dirichlet(np.ones(3)))
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "turns.py").write_text(textwrap.dedent(TURNS))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("turns", None)


@pytest.mark.parametrize("name", BLOCKS)
def test_resumed_run_is_the_run_that_was_never_stopped(workspace, tmp_path, own_module, name):
    whole = inside.train(workspace, tmp_path / "whole", versatune=BLOCKS[name], **SAVING)
    expected = runs.history(tmp_path / "whole")
    assert len({str(record["proportions"]) for record in expected}) > 2 or name == "dmt", "the proportions never moved"
    for step in (3, 9):
        folder = inside.stopped_at(tmp_path / "whole", tmp_path / f"stopped-{step}", step)
        resumed = inside.train(workspace, folder, resume=True, versatune=BLOCKS[name], **SAVING)
        assert runs.history(folder) == expected
        assert runs.stream(folder) == runs.stream(tmp_path / "whole")
        assert inside.same_weights(inside.weights(whole), inside.weights(resumed))


def test_guards_hold_in_every_line_of_the_history(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, versatune=BLOCKS["guards"], **SAVING)
    records = runs.history(tmp_path)
    for record in records:
        shares = record["proportions"]
        assert min(shares.values()) >= 0.1 - 1e-12
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
        changes = [abs(shares[d] - record["proportions_before"][d]) for d in shares]
        assert max(changes) <= 0.2 + 1e-12
    assert any(record["proposed"] is not None for record in records), "the guards had nothing to do"
    for domain, drawn in records[-1]["drawn_by_domain"].items():
        assert drawn <= 0.45 * trainer.mixture_sampler.num_rows_by_domain[domain] + 1
    assert records[-1]["drawn_by_domain"]["code"] >= 0.45 * 21 - 1, "the limit on passes did not bite"


def test_limit_on_passes_holds_without_losses_too(workspace, tmp_path):
    inside.train(workspace, tmp_path, versatune=BLOCKS["increase without losses, within passes"], **SAVING)
    drawn = runs.history(tmp_path)[-1]["drawn_by_domain"]
    assert 0.5 * 21 - 1 <= drawn["code"] <= 0.5 * 21 + 1


def test_domain_at_zero_has_no_training_loss_and_the_others_are_mixed_on(workspace, tmp_path):
    inside.train(workspace, tmp_path, versatune=BLOCKS["training losses with a domain at zero"], **SAVING)
    first, *later = runs.history(tmp_path)
    assert all(record["losses"]["code"] is None and record["potential"]["code"] == 0 for record in later)
    assert later[-1]["proportions"]["code"] == 0
    assert later[-1]["proportions"]["law"] != first["proportions"]["law"]


def test_ranks_that_decide_differently_end_with_an_error(workspace, tmp_path, own_module):
    block = BLOCKS["own"] | {"strategy": "turns:Chance"}
    processes = runs.start(workspace, tmp_path / "two", 2, versatune=block, max_steps=4, save_strategy="no")
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 1]
    assert "the ranks' proportions differ: a strategy must decide by its observation alone" in runs.log_of(
        tmp_path / "two"
    )


def test_stages_of_another_length_are_not_resumed(workspace, tmp_path):
    inside.train(workspace, tmp_path / "whole", versatune=BLOCKS["sequential"], **SAVING)
    folder = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", 6)
    with pytest.raises(
        ValueError, match=r"\[\[7, .*, those of this run are \[\[10, .*: resume it with the strategy, stages"
    ):
        inside.train(workspace, folder, resume=True, versatune=BLOCKS["sequential"], **(SAVING | {"max_steps": 20}))


def test_stages_in_another_order_are_not_resumed(workspace, tmp_path):
    inside.train(workspace, tmp_path / "whole", versatune=BLOCKS["sequential"], **SAVING)
    folder = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", 3)
    other = BLOCKS["sequential"] | {"stages": {"order": ["medicine", "law", "code"]}}
    with pytest.raises(ValueError, match="resume it with the strategy, stages and number of steps that it had"):
        inside.train(workspace, folder, resume=True, versatune=other, **SAVING)


def test_run_too_short_for_its_stages_is_refused_before_a_step(workspace, tmp_path):
    block = BLOCKS["sequential"] | {"update_interval": 1}
    with pytest.raises(
        ValueError, match=r"the run has 2 optimizer steps, in which stage 3/3 'code' .* would get no step"
    ):
        inside.build(workspace, tmp_path, versatune=block, max_steps=2)


def test_two_processes_tell_the_error_of_a_change_alike(workspace, tmp_path):
    block = BLOCKS["expansion from a high start"]
    runs.run(workspace, tmp_path / "two", 2, versatune=block, max_steps=6, save_strategy="no")
    one, other = ((tmp_path / "two" / f"decided-{rank}.json").read_text() for rank in range(2))
    assert one == other
    errors = [record["forgetting_error"] for record in runs.history(tmp_path / "two")]
    assert errors[0] is None
    assert all(error > 0 for record in errors[1:] for error in record.values())
