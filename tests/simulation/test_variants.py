"""What `--try` changes, and what it may not."""

from tests.detections import make_document
from tests.simulation.histories import proportions, refusal
from versatune_plugin.simulation import simulate
from versatune_plugin.simulation.variants import merged


def test_a_variant_sets_and_removes_dotted_keys():
    block = {"sigma": 1.0, "guards": {"floor": 0.1}, "expansion": None, "reference_losses": "self"}
    text = "sigma=2 guards.floor=null expansion.domain='[law, code]' reference_losses=null"
    assert merged(block, text) == {"sigma": 2, "guards": {}, "expansion": {"domain": ["law", "code"]}}
    assert block["guards"] == {"floor": 0.1}


def test_all_mistakes_of_all_variants_are_reported_together_as_for_a_yaml(source):
    message = refusal(
        source,
        "sigma=-1 sigmaa=2",
        "strategy=fostering",
        "sigma",
        "sigma=",
        "sigma.law=2",
        "expansion.domain=lawn",
        "sigma='{'",
        "expansion.domain=law guards.floor=0.6",
        "sigma='1",
        "",
    )
    first, *lines = message.splitlines()
    (of_block,) = [line for line in lines if "names 'lawn', which `" in line]  # two keys of the block disagree
    assert "versatune.expansion.domain: " in of_block
    assert [first, *(line for line in lines if line != of_block)] == [
        "12 mistake(s):",
        "  --try 'sigma=-1 sigmaa=2': versatune.sigmaa: unknown key; did you mean 'sigma'? (given: 2)",
        "  --try 'sigma=-1 sigmaa=2': versatune.sigma: Input should be greater than or equal to 0 (given: -1)",
        "  --try 'strategy=fostering': versatune.strategy: unknown strategy; valid names: versatune, uniform, "
        "proportional, temperature, unimax, manual, constant, inverse, specific, increase_uniform, "
        "increase_unconditional, multitask, sequential, mixed_sequential, dmt, odm, dynamic_batch_loading, "
        "module:Class (given: 'fostering')",
        "  --try 'sigma': 'sigma' is not KEY=VALUE (null removes the key; a value with blanks needs quotes)",
        "  --try 'sigma=': 'sigma=' is not KEY=VALUE (null removes the key; a value with blanks needs quotes)",
        "  --try 'sigma.law=2': sigma.law: sigma is 1.0, which has no keys",
        "  --try 'expansion.domain=lawn': versatune.expansion.domain names an unknown domain 'lawn'; did you "
        "mean 'law'?",
        "  --try \"sigma='{'\": the value of sigma is not YAML: '{'",
        "  --try 'expansion.domain=law guards.floor=0.6': versatune.guards.floor: the floors of 2 domains sum to 1.2, "
        "above 1",
        '  --try "sigma=\'1": No closing quotation',
        "  --try '': '' is not KEY=VALUE (null removes the key; a value with blanks needs quotes)",
    ]


def test_a_detected_start_is_read_from_its_file(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "versatune/detection.json does not exist; `versatune detect CONFIG` makes it" in refusal(
        source, "initial_proportions=null"
    )
    make_document(proportions={"law": 0.8, "code": 0.2}).write("detected.json")
    outcome = simulate(source, ["initial_proportions=detected.json"]).outcomes[1]
    assert proportions(outcome)[0] == [0.8, 0.2]
    assert "detected.json was read without checking that it is of this model and these rows" in outcome.notes
    make_document(proportions={"law": 0.8, "medicine": 0.2}).write("detected.json")
    assert "names an unknown domain 'medicine'" in refusal(source, "initial_proportions=detected.json")
