"""The loop over the domains: what it measures, and what a kill, a full disk or somebody else's folder does to it."""

import json

import pytest

from tests.known_references import CURVES, PROBE, Trainer, making
from versatune_plugin.measuring.references import runs


class Runs(Trainer):
    """Runs in a folder; `measure` may be called again and again."""

    def __init__(self, file) -> None:
        super().__init__()
        self.file, self.folder, self.said = file, runs.runs_folder(file), []

    def measure(self, **reference) -> dict:
        return making(self.file, reference=reference).measure(self, self.said.append)

    def says(self, *phrases: str) -> bool:
        return any(all(phrase in line for phrase in phrases) for line in self.said)


@pytest.fixture
def host(tmp_path) -> Runs:
    return Runs(tmp_path / "references.json")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_seconds(results: dict) -> dict:
    return {domain: result.model_copy(update={"seconds": 0}) for domain, result in results.items()}


def test_reference_loss_is_the_lowest_of_the_epochs_and_the_checkpoints_go(host):
    results = host.measure()
    assert {domain: result.reference_loss for domain, result in results.items()} == {"law": 2.5, "code": 1.25}
    assert results["law"].curve[2].model_dump() == {"epoch": 2.0, "step": 4, "loss": 2.5}
    assert (results["law"].probe, results["law"].data, results["law"].stopped_early) == (PROBE, None, False)
    assert host.says("reference law 1/2: loss 2.5000 after epoch 2")
    assert [names(host.folder / domain) for domain in CURVES] == [{"run.json", "versatune"}] * 2
    (host.folder / "law" / "checkpoint-2").mkdir()  # a kill after the result was noted
    assert without_seconds(host.measure()) == without_seconds(results)
    assert not (host.folder / "law" / "checkpoint-2").exists()
    assert host.ran == ["law", "code"]


def test_loss_before_the_first_step_is_no_epoch_and_a_worse_model_is_named(host):
    host.curves = {"law": [2.0, 3.0, 2.5, 2.25]}
    assert host.measure()["law"].reference_loss == 2.25
    assert host.says("warning", "'law'", "2.2500 against 2.0000")


@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize("domain", ["law", "code"])
def test_killed_anywhere_it_goes_on_and_gives_the_same_result(host, tmp_path, domain, epochs):
    host.killed_in = {domain: epochs}
    with pytest.raises(KeyboardInterrupt):
        host.measure()
    unbroken = Runs(tmp_path / "unbroken.json").measure()
    assert without_seconds(host.measure()) == without_seconds(unbroken)
    # a run that got to its last epoch is whole: only its result was missing
    assert host.ran.count(domain) == (1 if epochs == 3 else 2)
    other = "law" if domain == "code" else "code"
    assert host.ran.count(other) == 1, "a finished domain was run again"


def test_changed_identity_starts_the_domain_anew_and_names_what_changed(host):
    host.measure()
    host.data["code"] = "other"
    host.measure()
    assert host.ran == ["law", "code", "code"]
    assert host.says("reference code 2/2: starts anew", "another data")


def test_run_stops_at_the_first_rise_between_epochs_where_asked(host):
    host.curves = {"law": [5.0, 6.0, 2.5, 2.75, 1.0]}  # 5 -> 6 is no rise between epochs
    result = host.measure(epochs=4, stop_when_rising=True)["law"]
    assert (result.reference_loss, result.stopped_early) == (2.5, True)
    assert [point.loss for point in result.curve] == [5.0, 6.0, 2.5, 2.75]
    assert host.says("stopped")


def test_rise_that_was_measured_before_a_kill_still_ends_the_run(host):
    host.curves, host.killed_in = {"law": [5.0, 2.5, 2.75, 1.0, 0.5]}, {"law": 2}
    with pytest.raises(KeyboardInterrupt):
        host.measure(epochs=4, stop_when_rising=True)
    assert host.measure(epochs=4, stop_when_rising=True)["law"].reference_loss == 2.5
    assert host.ran == ["law"]


def test_run_that_ends_early_is_an_error_that_keeps_what_is_finished(host, monkeypatch):
    host.curves = CURVES | {"code": CURVES["code"][:2]}
    with pytest.raises(RuntimeError, match="'code' ended after epoch 1 of 3") as error:
        host.measure()
    assert str(host.folder / "code") in str(error.value)
    host.curves = CURVES
    monkeypatch.setattr(host, "train", lambda domain, folder: None)
    host.data["law"] = "other"
    with pytest.raises(RuntimeError, match="'law' ended after epoch 0 of 3"):  # without any history
        host.measure()
    monkeypatch.undo()
    host.data["law"] = "d"
    host.measure()
    assert host.ran == ["law", "code", "law", "code"]


def test_epochs_without_a_finite_loss_are_left_out_and_all_of_them_are_an_error(host):
    host.curves = {"law": [None, None, 3.0, None]}
    assert host.measure()["law"].reference_loss == 3.0
    host.curves, host.data = {"law": [5.0, None, None, None]}, {"law": "other"}
    with pytest.raises(ValueError, match="'law' has no finite loss"):
        host.measure()
    assert json.loads((host.folder / "law" / "run.json").read_text())["result"] is None


def test_full_disk_leaves_the_finished_domains(host, monkeypatch):
    write = runs.RunFile.write

    def full(run, path):
        if run.result is not None and "code" in str(path):
            raise OSError(28, "No space left on device")
        write(run, path)

    monkeypatch.setattr(runs.RunFile, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        host.measure()
    monkeypatch.undo()
    assert host.measure()["code"].reference_loss == 1.25
    assert host.ran == ["law", "code"]


def test_folder_of_somebody_else_stops_the_run_and_stays(host):
    data = host.folder / "law" / "train.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    for _ in ("without a run.json", "with one of another kind"):
        with pytest.raises(ValueError, match="law is needed for a reference run, but versatune did not make it"):
            host.measure()
        (host.folder / "law" / "run.json").write_text('{"schema": "mine"}')
    assert data.read_text() == "{}"
    assert host.ran == []


def test_kill_before_a_folder_is_marked_as_ours_blocks_nothing(host):
    (host.folder / "law").mkdir(parents=True)
    (host.folder / "code").mkdir()
    (host.folder / "code" / "run.json.tmp").write_text("{")
    host.measure()
    assert host.ran == ["law", "code"]


def test_run_that_was_killed_while_it_was_cleared_starts_anew_under_either_identity(host, monkeypatch):
    def killed(kept, where):
        raise KeyboardInterrupt

    host.killed_in = {"law": 2}
    with pytest.raises(KeyboardInterrupt):
        host.measure()
    host.data["law"] = "other"
    monkeypatch.setattr(runs, "_delete_all_but", killed)
    with pytest.raises(KeyboardInterrupt):
        host.measure()
    monkeypatch.undo()
    host.data["law"] = "d"
    monkeypatch.setattr(host, "train", lambda domain, folder: None)
    with pytest.raises(RuntimeError, match="ended after epoch 0"):
        host.measure()


def test_result_holds_the_fingerprint_of_the_training_rows_where_a_checkpoint_tells_it(host, monkeypatch):
    train = host.train

    def with_state(domain, folder):
        train(domain, folder)
        saved = {"VersaTuneCallback": {"attributes": {"fingerprints": {"training_rows": {domain: "f"}}}}}
        state = json.dumps({"stateful_callbacks": saved if domain == "law" else {}})
        (folder / "checkpoint-2" / "trainer_state.json").write_text(state)

    monkeypatch.setattr(host, "train", with_state)
    assert {domain: result.data for domain, result in host.measure().items()} == {"law": "f", "code": None}


@pytest.mark.parametrize(
    "domains", [("a/b", "a-b"), ("..", "-"), ("Recht & Gesetz", "Recht - Gesetz"), ("x" * 3, "X" * 3)], ids=str
)
def test_every_domain_has_a_folder_of_its_own_inside_the_runs_folder(domains):
    folders = [runs.folder_name(domain) for domain in domains]
    assert len(set(folders)) == len(domains)
    assert all("/" not in folder and folder not in ("", ".", "..") for folder in folders)


def test_long_names_have_short_folders_of_their_own(tmp_path):
    names = ["d" * 100, "d" * 101, "d" * 300, "d" * 299 + "e", "法" * 200, "法" * 199 + "律"]
    folders = [runs.folder_name(name) for name in names]
    assert folders[0] == names[0]
    assert len(set(folders)) == len(names)
    for folder in folders:
        (tmp_path / folder).mkdir()
        assert len(folder) <= 110


def test_a_domain_is_finished_once_it_has_its_result(host):
    host.killed_in = {"code": 1}
    with pytest.raises(KeyboardInterrupt):
        host.measure()
    assert [runs.is_finished(host.file, domain) for domain in ("law", "code", "tax")] == [True, False, False]


def test_forgetting_removes_the_file_and_the_runs(host):
    host.measure()
    host.file.touch()
    runs.forget(host.file)
    assert list(host.file.parent.iterdir()) == []
    runs.forget(host.file)


def test_forgetting_leaves_what_is_not_ours(host):
    host.measure()
    others = [host.file.with_suffix("") / "law" / "train.jsonl", host.folder / "tax" / "notes", host.folder / "notes"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    runs.forget(host.file)
    left = [path for path in host.file.parent.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(others)


def test_forgetting_says_what_it_cannot_delete(host, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    host.measure()
    monkeypatch.setattr(runs.shutil, "rmtree", denied)
    with pytest.raises(PermissionError, match="versatune"):
        runs.forget(host.file)
