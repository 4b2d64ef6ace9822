"""Histories, what a variant may ask of them, and those that cannot be replayed."""

import json

from tests.simulation.histories import BLOCK, LOSSES, refusal, variants_of, write_history
from tests.tiny import write_jsonl
from versatune_plugin.simulation import format_simulation, simulate


def test_the_end_of_an_unfinished_history_is_the_end_of_the_simulation(source):
    simulation = simulate(source)
    assert simulation.outcomes[0].records[-1].step == 20
    assert "The history ends at step 20, and so does the simulation." in format_simulation(simulation)


def test_recorded_proportions_that_do_not_follow_from_the_settings_are_pointed_out(source):
    assert "differs from the recorded proportions from step 10 on" in format_simulation(simulate(source))


def test_an_interval_between_the_records_is_refused_with_those_that_can_be_replayed(source):
    message = refusal(source, "update_interval=15")
    assert "--try 'update_interval=15': versatune.update_interval: an update is due at step 15, where no" in message
    assert "only multiples of 10, with which the run began, can be replayed" in message


def test_a_variant_without_the_losses_it_needs_is_told_what_would_do(tmp_path, source):
    assert (
        "versatune.signal: 'train' takes losses of training batches, this history has those of held-out rows; to "
        in (refusal(source, "strategy=odm"))
    )
    assert len(variants_of(source, "strategy=odm signal=probe")) == 2
    unmeasured = {step: None for step in LOSSES}
    block = {"strategy": "uniform", "update_interval": 10, "probe": {"rows_per_domain": 0}}
    write_history(tmp_path / "empty", block, unmeasured)
    assert variants_of(tmp_path / "empty") == [[[0.5, 0.5]] * 3]
    assert "'dynamic_batch_loading' needs losses, and this history holds none" in refusal(
        tmp_path / "empty",
        "strategy=dynamic_batch_loading probe=null reference_losses=self initial_proportions=uniform",
    )


def test_recorded_code_is_imported_only_where_the_user_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_somebody.py").write_text(
        "from pathlib import Path\n"
        "from versatune_plugin.strategies import Decision, Strategy\n"
        "Path('imported').touch()\n"
        "class Half(Strategy):\n"
        "    def decide(self, observation):\n"
        "        return Decision(proportions=observation.proportions[::-1].copy())\n"
    )
    write_history(tmp_path, BLOCK | {"strategy": "of_somebody:Half", "initial_proportions": {"law": 0.7, "code": 0.3}})
    assert refusal(tmp_path, "sigma=2").endswith("--try strategy=of_somebody:Half")
    assert not (tmp_path / "imported").exists()
    as_it_is, named = variants_of(tmp_path, "strategy=of_somebody:Half")
    assert as_it_is == named == [[0.7, 0.3], [0.3, 0.7], [0.7, 0.3]]


def test_other_strategies_are_tried_on_a_run_whose_code_is_not_there(tmp_path):
    write_history(tmp_path, BLOCK | {"strategy": "of_nobody:Half"})
    simulation = simulate(tmp_path, ["strategy=constant"])
    assert [outcome.title for outcome in simulation.outcomes] == ["strategy=constant"]
    assert "Left out: as recorded: versatune.strategy: 'of_nobody:Half' is recorded code" in (
        format_simulation(simulation)
    )


def test_a_history_of_an_older_release_is_refused(source):
    path = source / "versatune" / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[0]["run"]
    write_jsonl(path, lines)
    assert f"{path} does not begin with what the run was (`run`)" in refusal(source)


def test_other_files_are_refused(source, tmp_path):
    path = source / "versatune" / "history.jsonl"
    assert variants_of(path) == variants_of(source)
    (tmp_path / "notes.txt").write_text("sigma\n")
    assert "notes.txt, line 1 is not a history record" in refusal(tmp_path / "notes.txt")
    (tmp_path / "none").mkdir()
    assert "history.jsonl does not exist: was this run made with a versatune block?" in refusal(tmp_path / "none")
    path.write_text("")
    assert "history.jsonl does not begin with what the run was" in refusal(source)
    (tmp_path / "run.yml").write_text("versatune: {}\n")
    assert "run.yml is a YAML" in refusal(tmp_path / "run.yml")


def test_a_run_resumed_with_another_interval_or_more_steps_says_so(tmp_path):
    write_history(tmp_path / "interval", losses={0: (2.0, 2.0), 10: (2.0, 1.25), 25: (1.5, 1.0)})
    message = refusal(tmp_path / "interval")
    assert "an update is due at step 20, where no loss was recorded" in message
    assert "unless it was resumed with another" in message
    write_history(tmp_path / "longer", losses=LOSSES | {30: (1.2, 1.0)})
    simulation = simulate(tmp_path / "longer")
    assert simulation.outcomes[0].records[-1].step == 30
    assert "The history ends at step 30, and so does the simulation." in format_simulation(simulation)
