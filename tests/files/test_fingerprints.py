import shutil

from safetensors.torch import load_file, save_file

from versatune_plugin.files.fingerprints import model_fingerprint, texts_fingerprint


def test_fingerprint_changes_with_a_single_weight(workspace, tmp_path):
    shutil.copytree(workspace / "model", tmp_path / "model")
    before = model_fingerprint(str(tmp_path / "model"))
    assert before == model_fingerprint(str(workspace / "model"))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(str(tmp_path / "model")) != before


def test_fingerprint_of_large_weights_sees_their_first_and_last_bytes(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(20_000_000))
    fingerprints = {model_fingerprint(str(tmp_path))}
    for position in (0, 19_999_999):
        changed = bytearray(20_000_000)
        changed[position] = 1
        file.write_bytes(changed)
        fingerprints.add(model_fingerprint(str(tmp_path)))
    assert len(fingerprints) == 3


def test_fingerprint_of_a_hub_name_that_is_not_cached_is_none():
    assert model_fingerprint("nobody/no-such-model") is None


def test_a_fingerprint_tells_texts_their_order_and_their_borders_apart():
    prints = {texts_fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab"], [])}
    assert len(prints) == 5
    assert texts_fingerprint(["ab", "\ud800"]) == texts_fingerprint(["ab", "\ud800"])
