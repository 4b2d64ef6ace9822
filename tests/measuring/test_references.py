import json
import math
from pathlib import Path

import pytest

from tests.test_imports import HEAVY, modules_loaded_by
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.history import history_path, to_line
from versatune_plugin.measuring import references

CURVES = {"law": [5.0, 3.0, 2.5, 2.75], "code": [4.0, 2.0, 1.5, 1.25]}
SETTINGS = {
    "learning_rate": 1e-3,
    "adapter": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "base_model_name_or_path": None},
    "sequence_len": 64,
    "seed": 5,
}
PROBE = {"rows": 6, "target_tokens": 60, "fingerprint": "p", "target_bytes": 240, "row_texts": "r", "target_texts": "t"}


def write_history(where: Path, domain: str, losses) -> None:
    """What a run leaves: a loss before the first step and after each epoch of 2 steps."""
    records = [
        {
            "step": 2 * epoch,
            "epoch": float(epoch),
            "losses": {domain: loss},
            "probe": None if epoch else {domain: PROBE},
        }
        for epoch, loss in enumerate(losses)
    ]
    path = history_path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(to_line, records)))


class Host:
    """Runs whose losses are known in advance; may be killed in the middle of a domain."""

    def __init__(self, folder: Path, curves=CURVES) -> None:
        self.folder, self.curves, self.said, self.ran = folder, curves, [], []
        self.killed_in: dict[str, int] = {}  # domain -> epochs it gets to

    def run(self, domain: str, where: Path) -> None:
        self.ran.append(domain)
        (where / "checkpoint-2").mkdir(exist_ok=True)
        epochs = self.killed_in.pop(domain, None)
        write_history(where, domain, self.curves[domain][: None if epochs is None else epochs + 1])
        if epochs is not None:
            raise KeyboardInterrupt

    def measure(self, epochs: int = 3, stop_when_rising: bool = False, identities=None) -> dict:
        return references.measure(
            tuple(self.curves),
            self.run,
            self.folder,
            identities or {domain: {"settings": {"epochs": epochs}, "data": "d"} for domain in self.curves},
            epochs=epochs,
            stop_when_rising=stop_when_rising,
            say=self.said.append,
        )

    def write(self, results: dict, **changes) -> dict:
        arguments = {
            "base_model": {"name": "big", "fingerprint": "b"},
            "reference_model": {"name": "small", "fingerprint": "s"},
            "difference": None,
            "settings": {"epochs": 3, "samples_per_epoch": None, "stop_when_rising": False} | SETTINGS,
            "rows_per_domain": 6,
            "probe": dict.fromkeys(results, PROBE),
            "data": dict.fromkeys(results, "d"),
        } | changes
        return references.write(self.file, results, **arguments)

    @property
    def file(self) -> Path:
        return self.folder.with_suffix(".json")


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(references.runs_folder(tmp_path / "references.json"))


def test_module_loads_no_heavy_library():
    assert modules_loaded_by("import versatune_plugin.measuring.references").isdisjoint(HEAVY)


# The runs


def test_reference_loss_is_the_lowest_of_the_epochs(host):
    results = host.measure()
    assert {domain: result["reference_loss"] for domain, result in results.items()} == {"law": 2.5, "code": 1.25}
    assert results["law"]["curve"][2] == {"epoch": 2.0, "step": 4, "loss": 2.5}
    assert results["law"]["probe"] == PROBE
    assert any(line.startswith("reference law 1/2: loss 2.5000 after epoch 2") for line in host.said)


def test_loss_before_the_first_step_is_no_epoch_and_a_worse_model_is_named(host):
    host.curves = {"law": [2.0, 3.0, 2.5, 2.25]}
    assert host.measure()["law"]["reference_loss"] == 2.25
    assert any(
        "every epoch on 'law' is worse than the untrained reference model (2.2500 against 2.0000)" in line
        for line in host.said
    )


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
@pytest.mark.parametrize("domain", ["law", "code"])
def test_killed_anywhere_it_goes_on_and_gives_the_same_result(host, tmp_path, domain, epochs):
    host.killed_in = {domain: epochs}
    with pytest.raises(KeyboardInterrupt):
        host.measure()
    unbroken = Host(tmp_path / "unbroken").measure()

    def without_seconds(results):
        return {domain: {**result, "seconds": None} for domain, result in results.items()}

    assert without_seconds(host.measure()) == without_seconds(unbroken)
    # a run that got to its last epoch is whole: only its result was missing
    assert host.ran.count(domain) == (1 if epochs == 3 else 2)
    other = "law" if domain == "code" else "code"
    assert host.ran.count(other) == 1, "a finished domain was run again"


def test_finished_domains_keep_their_history_and_lose_their_checkpoints(host):
    host.measure()
    for domain in CURVES:
        assert {path.name for path in (host.folder / domain).iterdir()} == {"run.json", "versatune"}


def test_checkpoints_left_by_a_kill_after_the_result_are_deleted(host):
    host.measure()
    (host.folder / "law" / "checkpoint-2").mkdir()
    host.measure()
    assert not (host.folder / "law" / "checkpoint-2").exists()


def test_changed_identity_starts_the_domain_anew_and_names_what_changed(host):
    host.measure()
    identities = {domain: {"settings": {"epochs": 3}, "data": "d"} for domain in CURVES}
    host.measure(identities=identities | {"code": {"settings": {"epochs": 3}, "data": "other"}})
    assert host.ran == ["law", "code", "code"]
    assert any("reference code 2/2: starts anew" in line and "another data" in line for line in host.said)


def test_run_stops_at_the_first_rise_between_epochs_where_asked(host):
    host.curves = {"law": [5.0, 6.0, 2.5, 2.75, 1.0]}  # 5 -> 6 is no rise between epochs
    result = host.measure(epochs=4, stop_when_rising=True)["law"]
    assert result["reference_loss"] == 2.5
    assert result["stopped_early"] is True
    assert [point["loss"] for point in result["curve"]] == [5.0, 6.0, 2.5, 2.75]
    assert any("stopped: the loss rose" in line for line in host.said)


def test_rise_that_was_measured_before_a_kill_still_ends_the_run(host):
    host.curves, host.killed_in = {"law": [5.0, 2.5, 2.75, 1.0, 0.5]}, {"law": 2}
    with pytest.raises(KeyboardInterrupt):
        host.measure(epochs=4, stop_when_rising=True)
    assert host.measure(epochs=4, stop_when_rising=True)["law"]["reference_loss"] == 2.5
    assert host.ran == ["law"]


def test_run_that_ends_early_is_an_error_that_keeps_what_is_finished(host):
    host.curves = CURVES | {"code": CURVES["code"][:2]}
    with pytest.raises(RuntimeError, match="reference run of domain 'code' ended after epoch 1 of 3") as error:
        host.measure()
    assert "give the same command again to go on" in str(error.value)
    assert str(host.folder / "code") in str(error.value)
    host.curves = CURVES
    host.measure()
    assert host.ran == ["law", "code", "code"]


def test_run_that_leaves_no_history_is_the_same_error(host):
    host.run = lambda domain, where: None
    with pytest.raises(RuntimeError, match="ended after epoch 0 of 3"):
        references.measure(
            ("law",), host.run, host.folder, {"law": {}}, epochs=3, stop_when_rising=False, say=host.said.append
        )


def test_epochs_without_a_finite_loss_are_left_out_and_all_of_them_are_an_error(host):
    host.curves = {"law": [5.0, None, 3.0, None]}
    assert host.measure()["law"]["reference_loss"] == 3.0
    host.folder = host.folder.with_name("other")
    host.curves = {"law": [5.0, None, None, None]}
    with pytest.raises(ValueError, match="domain 'law' has no finite loss in any of its epochs") as error:
        host.measure()
    assert "lower the learning rate" in str(error.value)
    assert json.loads((host.folder / "law" / "run.json").read_text())["result"] is None


def test_full_disk_leaves_the_finished_domains(host, monkeypatch):
    def full(path, schema, content):
        if content.get("result") is not None and "code" in str(path):
            raise OSError(28, "No space left on device")
        return write(path, schema, content)

    write = references.write_document
    monkeypatch.setattr(references, "write_document", full)
    with pytest.raises(OSError, match="No space left on device"):
        host.measure()
    monkeypatch.setattr(references, "write_document", write)
    assert host.measure()["code"]["reference_loss"] == 1.25
    assert host.ran == ["law", "code"]


def test_folder_of_somebody_else_stops_the_run_and_stays(host):
    data = host.folder / "law" / "train.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    with pytest.raises(ValueError, match="law is needed for a reference run, but versatune did not make it"):
        host.measure()
    (host.folder / "law" / "run.json").write_text('{"schema": "mine"}')
    with pytest.raises(ValueError, match="move it away"):
        host.measure()
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
    others = {domain: {"data": "other"} for domain in CURVES}
    with monkeypatch.context() as patched:
        patched.setattr(references, "_delete_all_but", killed)
        with pytest.raises(KeyboardInterrupt):
            host.measure(identities=others)
    host.run = lambda domain, where: None
    with pytest.raises(RuntimeError, match="ended after epoch 0"):
        host.measure()


def test_result_holds_the_fingerprint_of_the_training_rows_where_a_checkpoint_tells_it(host):
    run = host.run

    def with_state(domain, where):
        run(domain, where)
        saved = {"VersaTuneCallback": {"attributes": {"fingerprints": {f"training rows of {domain!r}": "f"}}}}
        state = json.dumps({"stateful_callbacks": saved if domain == "law" else {}})
        (where / "checkpoint-2" / "trainer_state.json").write_text(state)

    host.run = with_state
    assert {domain: result["data"] for domain, result in host.measure().items()} == {"law": "f", "code": None}


@pytest.mark.parametrize(("warmup_steps", "warned"), [(6, "law 6"), (5, None), (0.9, None), (0, None)], ids=str)
def test_warm_up_as_long_as_a_run_is_named(warmup_steps, warned):
    said = []
    references.warn_of_warmup({"law": 6, "code": 60}, warmup_steps, said.append)
    assert [f"never reach the learning rate: {warned} step(s)" in line for line in said] == [True] * bool(warned)


@pytest.mark.parametrize(
    "names", [("a/b", "a-b"), ("..", "-"), ("Recht & Gesetz", "Recht - Gesetz"), ("x" * 3, "X" * 3)], ids=str
)
def test_every_domain_has_a_folder_of_its_own_inside_the_runs_folder(names):
    folders = [references.folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all("/" not in folder and folder not in ("", ".", "..") for folder in folders)


# Tokenizers


class Words:
    """A tokenizer of whole words."""

    def __init__(self, *words: str, upper: bool = False) -> None:
        self._words, self._upper = {word: number for number, word in enumerate(words)}, upper

    def get_vocab(self) -> dict:
        return self._words

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self._words[word.upper() if self._upper else word] for word in text.split()]


def test_tokenizers_are_the_same_by_what_they_do_not_by_name():
    one, same = Words("a", "b", "A", "B"), Words("a", "b", "A", "B")
    assert references.tokenizer_difference(one, same, ["a b", "b"]) is None
    reason = references.tokenizer_difference(one, Words("a", "A", "b"), ["a b"])
    assert reason == "their vocabularies (4 and 3 tokens) differ in 3 tokens"
    reason = references.tokenizer_difference(one, Words("a", "b", "A", "B", upper=True), ["A", "a b"])
    assert reason == "they split 'a b' into other tokens"


# The file


def test_written_file_reads_back_and_its_numbers_enter_the_block(host):
    document = host.write(host.measure())
    read = references.read(host.file)
    assert {key: read[key] for key in document} == document
    numbers = references.numbers_of(host.file, read)
    assert numbers.reference_losses == {"law": 2.5, "code": 1.25}
    assert (numbers.loss_unit, numbers.probe_rows) == ("token", 6)


def test_file_of_another_tokenizer_sets_the_unit_of_the_run(host):
    document = host.write(host.measure(), difference="their vocabularies differ")
    assert document["unit"] == "nats per byte"
    assert references.numbers_of(host.file, document).loss_unit == "byte"


def fits(document, **changes) -> list[str]:
    arguments = {
        "domains": ("law", "code"),
        "base_model": {"name": "big", "fingerprint": "b"},
        "reference": None,
        "rows_per_domain": None,
        "settings": None,
    } | changes
    return references.misfits(document, **arguments)


REFERENCE = {"name": "small", "fingerprint": "s", "epochs": 3, "samples_per_epoch": None, "stop_when_rising": False}


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"domains": ("law", "tax")}, "it has the domains law, code, this run has law, tax"),
        ({"base_model": {"name": "big", "fingerprint": "c"}}, "its base model is big (b), that of this run is big (c)"),
        ({"reference": REFERENCE | {"fingerprint": "z"}}, "its reference model is small (s), the block's is small (z)"),
        ({"reference": REFERENCE | {"epochs": 4}}, "its runs had epochs 3, the block's `reference:` has 4"),
        ({"reference": REFERENCE | {"samples_per_epoch": 9}}, "had samples_per_epoch None, the block's"),
        ({"reference": REFERENCE | {"stop_when_rising": True}}, "had stop_when_rising False, the block's"),
        ({"rows_per_domain": 8}, "it was measured on 6 held-out rows per domain, the block asks for 8"),
    ],
    ids=["domains", "base model", "reference model", "epochs", "samples", "stop", "probe rows"],
)
def test_each_misfit_is_named_with_what_was_given(host, changes, phrase):
    document = host.write(host.measure())
    assert fits(document, reference=REFERENCE) == []
    (problem,) = fits(document, **changes)
    assert phrase in problem


LORA = SETTINGS["adapter"]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"learning_rate": 2e-3}, "learning_rate 0.001, this run has 0.002"),
        ({"adapter": "none: full fine-tune"}, "adapter LORA, this run has none: full fine-tune"),
        ({"adapter": LORA | {"r": 8}}, "adapter r 4, this run has 8"),
        ({"adapter": LORA | {"target_modules": None}}, "adapter target_modules all-linear, this run has None"),
        ({"sequence_len": 32}, "sequence_len 64, this run has 32"),
        ({"seed": 6}, "seed 5, this run has 6"),
    ],
    ids=["learning rate", "adapter", "rank", "targets", "length", "seed"],
)
def test_other_settings_of_the_run_are_named_only_beside_a_reference_model(host, change, phrase):
    document = host.write(host.measure())
    (problem,) = fits(document, reference=REFERENCE, settings=SETTINGS | change)
    assert f"its runs had {phrase} (they may differ only without `reference:` in the block)" in problem
    assert fits(document, reference=None, settings=SETTINGS | change) == []


def test_adapter_that_has_met_its_model_is_the_same_one(host):
    met = LORA | {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "big", "of_a_later_peft": 1}
    assert fits(host.write(host.measure()), reference=REFERENCE, settings=SETTINGS | {"adapter": met}) == []


def test_file_that_a_block_names_is_compared_with_the_settings_of_the_run(host):
    host.write(host.measure())
    block = {"initial_proportions": "uniform", "reference_losses": str(host.file)}
    config = VersaTuneConfig(**block, reference={"model": "small", "epochs": 3})

    def describe(name):
        return {"name": name, "fingerprint": name[0]}

    arguments = (("law", "code"), "big", describe, "x --refresh")
    references.of_file(config, *arguments, settings=SETTINGS)
    with pytest.raises(ValueError, match=r"learning_rate 0\.001, this run has 0\.1 .*\n  what to do: x --refresh"):
        references.of_file(config, *arguments, settings=SETTINGS | {"learning_rate": 0.1})


def test_model_without_a_fingerprint_is_told_by_its_name(host):
    document = host.write(host.measure())
    assert fits(document, base_model={"name": "big", "fingerprint": None}) == []
    assert len(fits(document, base_model={"name": "bigger", "fingerprint": None})) == 1


def test_other_rows_are_named_by_domain(host):
    document = host.write(host.measure())
    assert references.row_misfits(document, {"law": "d", "code": "d"}, {"law": PROBE, "code": PROBE}) == []
    problems = references.row_misfits(
        document, {"law": "other", "code": "d"}, {"law": PROBE, "code": PROBE | {"fingerprint": "q"}}
    )
    assert problems[0] == "the training rows of 'law' are others"
    assert problems[1].startswith("the measured held-out rows of 'code' are others")


def test_refusal_lists_all_problems_the_command_and_the_numbers(host):
    document = host.write(host.measure())
    references.refuse("r.json", document, [], "x")
    with pytest.raises(
        ValueError, match=r"r.json does not fit this run:\n  one\n  two\n  what to do: x --refresh"
    ) as error:
        references.refuse("r.json", document, ["one", "two"], "x --refresh")
    assert "reference_losses: {law: 2.5, code: 1.25}" in str(error.value)


def test_numbers_per_byte_are_not_offered_as_a_way_out(host):
    document = host.write(host.measure(), difference="other")
    with pytest.raises(ValueError, match="does not fit") as error:
        references.refuse("r.json", document, ["one"], "x")
    assert "give the numbers" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda d: d.pop("probe"), "lacks probe: was it edited"),
        (lambda d: d.update(unit="bits"), "the unit must be one of nats per target token, nats per byte, got 'bits'"),
        (lambda d: d["reference_losses"].update(law=-1), "reference loss of domain 'law' must be at least 0, got -1"),
        (lambda d: d["reference_losses"].pop("code"), "reference loss of domain 'code' must be at least 0, got None"),
        (lambda d: d.update(schema="versatune/detection"), "is not a versatune/references document"),
    ],
    ids=["a key", "the unit", "a negative loss", "a missing loss", "another document"],
)
def test_edited_file_is_refused(host, change, phrase):
    host.write(host.measure())
    path = host.file
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=phrase):
        references.read(path)


def test_forgetting_removes_the_file_and_the_runs(host):
    host.write(host.measure())
    references.forget(host.file)
    assert list(host.folder.parent.iterdir()) == []
    references.forget(host.file)


def test_forgetting_leaves_what_is_not_ours(host):
    host.write(host.measure())
    others = [host.file.with_suffix("") / "law" / "train.jsonl", host.folder / "tax" / "notes", host.folder / "notes"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    references.forget(host.file)
    left = [path for path in host.folder.parent.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(others)


def test_forgetting_says_what_it_cannot_delete(host, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    host.write(host.measure())
    monkeypatch.setattr(references.shutil, "rmtree", denied)
    with pytest.raises(PermissionError, match="versatune"):
        references.forget(host.file)


def test_table_shows_the_lowest_loss_and_where_it_was(host):
    host.curves = CURVES | {"code": [math.pi, 2.0, 1.5, 1.75]}
    lines = references.format_table(host.write(host.measure())).splitlines()
    assert " ".join(lines[0].split()) == "domain reference loss at epoch untrained epochs seconds (last attempt)"
    assert lines[2].split()[:5] == ["code", "1.5000", "2", "3.1416", "3"]


def test_plot_of_the_curves_is_a_png_also_with_a_missing_loss(host):
    pytest.importorskip("matplotlib")
    host.curves = {"$law_": [5.0, None, 3.0, 2.0], "_code": [4.0, 3.0, 2.0, 3.0]}
    path = references.plot_curves(host.write(host.measure()), host.folder.with_suffix(".png"))
    assert path.read_bytes().startswith(b"\x89PNG")
