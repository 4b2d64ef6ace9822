"""references.json: what is in it, and whether it fits a run."""

import json
from pathlib import Path

import pytest

from tests.known_references import LORA, PROBE, SETTINGS, document, making
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.measuring.references import References, of_file, refuse, row_misfits
from versatune_plugin.measuring.references.checks import misfits
from versatune_plugin.measuring.references.document import Model
from versatune_plugin.measuring.references.tokenizers import tokenizer_difference


@pytest.fixture
def file(tmp_path):
    return tmp_path / "references.json"


@pytest.fixture
def made(file) -> References:
    return document(file)


def test_written_file_reads_back_and_gives_its_numbers(made, file):
    made.write(file)
    assert References.read(file) == made
    numbers = made.measured(file)
    assert numbers.reference_losses == {"law": 2.5, "code": 1.25}
    assert (numbers.loss_unit, numbers.probe_rows) == ("token", 6)
    source = {"file": str(file), "model": "small", "epochs": 3, "unit": "nats per target token"}
    assert numbers.sources == {"references": source | {"seconds": made.seconds}}
    assert made.seconds == sum(made.seconds_by_domain.values())
    assert (made.settings["learning_rate"], made.settings["processes"]) == (1e-3, 1)
    assert "law 2.5000, code 1.2500" in made.summary(file)


def test_file_of_another_tokenizer_sets_the_unit_of_the_run(file):
    made = document(file, difference="their vocabularies differ")
    assert (made.unit, made.tokenizer.same) == ("nats per byte", False)
    assert made.measured(file).loss_unit == "byte"
    said = []
    making(file, difference="their vocabularies differ").announce({}, 0, said.append)
    assert "nats per UTF-8 byte" in said[0]


@pytest.mark.parametrize(("warmup_steps", "warned"), [(6, "law 6"), (5, None), (0.9, None), (0, None)], ids=str)
def test_warm_up_as_long_as_a_run_is_named(file, warmup_steps, warned):
    said = []
    making(file).announce({"law": 6, "code": 60}, warmup_steps, said.append)
    assert [f"never reach the learning rate: {warned} step(s)" in line for line in said] == [True] * bool(warned)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda d: d.pop("probe"), "probe: "),
        (lambda d: d.update(unit="bits"), "unit: "),
        (lambda d: d["reference_losses"].update(law=-1), r"reference_losses\.law: "),
        (lambda d: d["reference_losses"].pop("code"), "reference_losses: there is none of 'code'"),
        (lambda d: d.update(schema="versatune/detection"), "is not a versatune/references document"),
    ],
    ids=["a key", "the unit", "a negative loss", "a missing loss", "another document"],
)
def test_edited_file_is_refused(made, file, change, phrase):
    made.write(file)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=phrase):
        References.read(file)


# Does it fit?


def fits(made: References, **changes) -> list[str]:
    """Misfits with the run that the file was made for, with changes to it."""
    block = {"initial_proportions": "uniform", "reference_losses": "r.json"} | changes.pop("block", {})
    arguments = {
        "domains": ("law", "code"),
        "base_model": Model(name="big", fingerprint="b"),
        "reference_model": Model(name="small", fingerprint="s"),
        "settings": SETTINGS,
    } | changes
    block |= {"reference": {"model": "small", "epochs": 3} | block.get("reference", {})}
    return misfits(made, VersaTuneConfig(**block), **arguments)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"domains": ("law", "tax")}, "the domains law, code, this run has law, tax"),
        ({"base_model": Model(name="big", fingerprint="c")}, "big (b), that of this run is big (c)"),
        ({"base_model": Model(name="bigger", fingerprint=None)}, "that of this run is bigger"),
        ({"reference_model": Model(name="small", fingerprint="z")}, "small (s), the block's is small (z)"),
        ({"block": {"reference": {"epochs": 4}}}, "epochs 3, the block's `reference:` has 4"),
        ({"block": {"reference": {"samples_per_epoch": 9}}}, "samples_per_epoch None, the block's `reference:` has 9"),
        ({"block": {"reference": {"stop_when_rising": True}}}, "stop_when_rising False, the block's"),
        ({"block": {"probe": {"rows_per_domain": 8}}}, "6 held-out rows per domain, the block asks for 8"),
        ({"settings": SETTINGS | {"learning_rate": 2e-3}}, "learning_rate 0.001, this run has 0.002"),
        ({"settings": SETTINGS | {"adapter": "none"}}, "adapter LORA, this run has none"),
        ({"settings": SETTINGS | {"adapter": LORA | {"r": 8}}}, "adapter r 4, this run has 8"),
        (
            {"settings": SETTINGS | {"adapter": LORA | {"target_modules": None}}},
            "adapter target_modules all-linear, this run has None",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_misfit_is_named_with_what_was_given(made, changes, phrase):
    (problem,) = fits(made, **changes)
    assert phrase in problem


def test_equal_runs_fit_by_whatever_name_or_order_their_parts_go(made):
    assert fits(made) == []
    assert fits(made, base_model=Model(name="big", fingerprint=None)) == [], "told by its name alone"
    met = LORA | {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "big", "of_a_later_peft": 1}
    assert fits(made, settings=SETTINGS | {"adapter": met}) == [], "the adapter has met its model"
    others = dict.fromkeys(SETTINGS, "other")
    assert fits(made, reference_model=None, settings=others) == [], "without `reference:` settings may differ"
    assert fits(made, settings={}) == [], "a host that knows none of them"
    assert making(Path("r.json")).misfits(made, made.domains) == []


def test_file_that_a_block_names_is_compared_with_the_run(made, file):
    config = VersaTuneConfig(
        initial_proportions="uniform", reference_losses=str(file), reference={"model": "small", "epochs": 3}
    )

    def describe(name):
        return {"name": name, "fingerprint": name[0]}

    arguments = (file, config, ("law", "code"), "big", describe, "x --refresh")
    with pytest.raises(ValueError, match="does not exist; x --refresh"):
        of_file(*arguments)
    made.write(file)
    numbers, read = of_file(*arguments, settings=SETTINGS)
    assert (numbers, read) == (made.measured(file), made)
    with pytest.raises(ValueError, match=r"learning_rate 0\.001, this run has 0\.1 .*\n  what to do: x --refresh"):
        of_file(*arguments, settings=SETTINGS | {"learning_rate": 0.1})


def test_other_rows_are_named_by_domain(made):
    assert row_misfits(made, {"law": "d", "code": "d"}, {"law": PROBE, "code": PROBE}) == []
    data, probe = {"law": "other", "code": "d"}, {"law": PROBE, "code": PROBE | {"fingerprint": "q"}}
    of_training, of_heldout = row_misfits(made, data, probe)
    assert of_training == "the training rows of 'law' are others"
    assert "held-out rows of 'code' are others" in of_heldout


def test_refusal_lists_all_problems_the_command_and_the_numbers_where_they_are_per_token(made, file):
    refuse("r.json", made, [], "x")
    with pytest.raises(ValueError, match=r"r.json .*\n  one\n  two\n  what to do: x --refresh") as error:
        refuse("r.json", made, ["one", "two"], "x --refresh")
    assert "reference_losses: {law: 2.5, code: 1.25}" in str(error.value)
    with pytest.raises(ValueError, match="one") as error:
        refuse("r.json", made.model_copy(update={"unit": "nats per byte"}), ["one"], "x")
    assert "1.25" not in str(error.value)


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
    assert tokenizer_difference(one, same, ["a b", "b"]) is None
    reason = tokenizer_difference(one, Words("a", "A", "b"), ["a b"])
    assert reason == "their vocabularies (4 and 3 tokens) differ in 3 tokens"
    reason = tokenizer_difference(one, Words("a", "b", "A", "B", upper=True), ["A", "a b"])
    assert reason == "they split 'a b' into other tokens"
