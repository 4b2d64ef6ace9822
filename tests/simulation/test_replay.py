"""A history of two updates, replayed by hand (see histories.py)."""

import json
import re

import numpy as np
import pytest

from tests.simulation.histories import LOSSES, proportions, variants_of, write_history
from versatune_plugin.simulation import format_simulation, simulate
from versatune_plugin.simulation.replay import replay
from versatune_plugin.simulation.variants import merged


def test_another_sigma_gives_the_proportions_computed_by_hand(source):
    as_it_is, doubled = variants_of(source, "sigma=2")
    # (1/2 * 3/2, 1/2 * 6/5) ~ (5, 4); then (5 * 5/4, 4 * 1) ~ (25, 16)
    np.testing.assert_allclose(as_it_is, [[0.5, 0.5], [5 / 9, 4 / 9], [25 / 41, 16 / 41]], rtol=1e-14)
    # (1/2 * 2, 1/2 * 7/5) ~ (10, 7); then (10 * 3/2, 7 * 1) ~ (15, 7)
    np.testing.assert_allclose(doubled, [[0.5, 0.5], [10 / 17, 7 / 17], [15 / 22, 7 / 22]], rtol=1e-14)


def test_sigma_zero_is_the_strategy_constant(source):
    _, zero, constant = variants_of(source, "sigma=0", "strategy=constant")
    assert zero == constant == [[0.5, 0.5]] * 3


def test_proportions_act_as_late_as_in_the_run_and_ask_for_the_rows_in_between(source):
    outcome = simulate(source).outcomes[0]
    assert [record.acts_at_draw for record in outcome.records] == [None, 48, 88]
    # of the 80 draws up to step 20, 48 at 1/2 and 32 at 5/9: 41.8 ask for law
    assert outcome.records[-1].drawn_by_domain == {"law": 42, "code": 38}
    table = format_simulation(simulate(source))
    assert re.search(r"^requested +0\.522 +0\.478$", table, re.M)
    assert re.search(r"^passes +0\.42 +0\.76$", table, re.M)


def test_a_longer_interval_takes_every_nth_record(source):
    _, seldom = variants_of(source, "update_interval=20")
    np.testing.assert_allclose(seldom, [[0.5, 0.5], [5 / 9, 4 / 9]], rtol=1e-14)  # (5/4, 1)


def test_a_stage_begins_at_its_step_though_no_loss_was_recorded_there(source):
    outcome = simulate(source, ["strategy=dmt initial_proportions=null stages.general=code"]).outcomes[1]
    # law alone for 100 of the 150.39 rows: 17 of 25 steps
    begins = next(record for record in outcome.records if record.step == 17)
    assert (begins.acts_at_draw, begins.proportions_before) == (68, {"law": 1.0, "code": 0.0})
    assert begins.note == "stage 2/2 begins: code + 1/256 of the others"
    assert "2 stages in 25 steps: law 0-17, code + 1/256 of the others 17-25" in outcome.notes


def test_a_limit_on_passes_that_never_acts_changes_nothing(source):
    free, limited = simulate(source, ["guards.max_passes=1000"]).outcomes
    assert proportions(free) == proportions(limited)
    for one, other in zip(free.records, limited.records, strict=True):
        assert list(one.drawn_by_domain.values()) == pytest.approx(list(other.drawn_by_domain.values()))


def test_a_limit_on_passes_counts_what_the_sampler_would_draw(source):
    _, limited = variants_of(source, "guards.max_passes=0.9")
    # code may be drawn 45 times in 100 draws; 22 of the first 48 draws are (45 % of them), so 23 of 52 are left
    assert limited[0] == [0.55, 0.45]
    assert limited[1][1] <= 23 / 52 + 1e-12


def test_a_loss_that_was_not_measured_skips_the_update_as_in_the_run(tmp_path):
    write_history(tmp_path, losses=LOSSES | {10: (2.0, None)})
    outcome = simulate(tmp_path).outcomes[0]
    np.testing.assert_allclose(proportions(outcome), [[0.5, 0.5], [0.5, 0.5], [5 / 9, 4 / 9]], rtol=1e-14)
    assert "1 update(s) skipped, the first at step 10: domain 'code' has loss nan" in outcome.notes


def test_what_a_mixture_warns_of_is_a_note_and_no_log_line(source, caplog):
    _, outcome = simulate(source, ["initial_proportions='{law: 1, code: 0}'"]).outcomes
    assert outcome.notes == ["domain 'code' starts at proportion 0 and will never be drawn"]
    assert caplog.text == ""


def test_a_replay_changes_nothing_that_it_was_given(source):
    run = simulate(source).run
    before = json.dumps(run.block)
    replay("one", merged(run.block, "expansion.domain=law guards.floor=0.1"), run)
    replay("other", run.block, run)
    assert json.dumps(run.block) == before
