import json
from pathlib import Path

import pytest

from versatune_plugin.evaluation.target import find_target


def model_folder(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def adapter_folder(folder, base):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    return folder


def test_a_models_folder_is_itself(tmp_path):
    target = find_target(str(model_folder(tmp_path / "out")))
    assert (target.base, target.adapter, target.step) == (str(tmp_path / "out"), None, None)
    assert target.folder == tmp_path / "out"


def test_a_checkpoint_knows_its_step_and_other_numbers_are_none(tmp_path):
    assert find_target(str(model_folder(tmp_path / "checkpoint-120"))).step == 120
    assert find_target(str(model_folder(tmp_path / "qwen-7"))).step is None


@pytest.mark.parametrize("place", ["out", "out/checkpoint-8"])
def test_the_base_of_an_adapter_is_looked_for_where_training_was_started(tmp_path, monkeypatch, place):
    monkeypatch.chdir("/")
    base = model_folder(tmp_path / "model")
    target = find_target(str(adapter_folder(tmp_path / place, "model")))
    assert Path(target.base) == base
    assert target.adapter == str(tmp_path / place)


def test_a_base_model_that_may_be_either_of_two_is_refused(tmp_path, monkeypatch):
    for place in ("here", "there"):
        model_folder(tmp_path / place / "model")
    adapter = str(adapter_folder(tmp_path / "there" / "out", "model"))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"may be any of .*name it with --base"):
        find_target(adapter)
    assert find_target(adapter, base=str(tmp_path / "here" / "model")).base == str(tmp_path / "here" / "model")


def test_a_base_model_on_a_hub_keeps_its_name_and_a_lost_folder_is_an_error(tmp_path):
    assert find_target(str(adapter_folder(tmp_path / "a", "Qwen/Qwen2-1.5B"))).base == "Qwen/Qwen2-1.5B"
    with pytest.raises(ValueError, match="base model '/gone/model' is not there; name it with --base"):
        find_target(str(adapter_folder(tmp_path / "b", "/gone/model")))


def test_the_fingerprint_changes_with_the_adapter_and_with_its_base(tmp_path):
    base = model_folder(tmp_path / "model")
    adapter = adapter_folder(tmp_path / "out", "model")
    seen = [find_target(str(adapter)).fingerprint()]
    (adapter / "adapter_model.safetensors").write_bytes(b"trained again")
    seen.append(find_target(str(adapter)).fingerprint())
    (base / "model.safetensors").write_bytes(b"other weights")
    seen.append(find_target(str(adapter)).fingerprint())
    assert len(set(seen)) == 3


def test_a_name_on_a_hub_has_no_folder():
    target = find_target("Qwen/Qwen2.5-7B")
    assert (target.folder, target.base) == (None, "Qwen/Qwen2.5-7B")


def test_what_holds_no_model_is_refused_and_an_unfinished_run_names_its_newest_checkpoint(tmp_path):
    for step in (4, 12):
        model_folder(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"holds no model; .* newest checkpoint is .*checkpoint-12$"):
        find_target(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"holds no model$"):
        find_target(str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder nor the name"):
        find_target(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="--base is for the folder of an adapter"):
        find_target(str(tmp_path / "run" / "checkpoint-4"), base="gpt2")
