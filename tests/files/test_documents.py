"""What every document does: detection.json, references.json and evaluation.json are subclasses."""

import json
import math
from typing import ClassVar

import pytest
from pydantic import ValidationError

from versatune_plugin.files.documents import Document


class Measured(Document):
    SCHEMA: ClassVar[str] = "versatune/measured"
    VERSION: ClassVar[int] = 2

    model: str
    losses: dict[str, float]
    error: float | None = None


def refusal(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"measured\.json") as caught:
        Measured.read(path)
    return str(caught.value)


def test_a_document_reads_back_as_it_was_written_to_the_last_bit(tmp_path):
    document = Measured(model="Größe", losses={"law": 0.1 + 0.2, "code": 5e-324})
    path = tmp_path / "versatune" / "measured.json"
    document.write(path)
    assert Measured.read(path) == document
    assert list(json.loads(path.read_text("utf-8")).items())[:2] == [("schema", "versatune/measured"), ("version", 2)]
    assert [file.name for file in path.parent.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_numbers_are_finite_in_memory_and_in_the_file(tmp_path, loss):
    with pytest.raises(ValidationError):
        Measured(model="m", losses={"law": loss})
    content = {"schema": "versatune/measured", "version": 2, "model": "m", "losses": {"law": loss}}
    assert "losses.law: " in refusal(tmp_path / "measured.json", content)


def test_all_wrong_keys_are_named_together(tmp_path):
    content = {"schema": "versatune/measured", "version": 2, "losses": {"law": "high"}, "lossses": {}}
    mistakes = refusal(tmp_path / "measured.json", content).partition("document: ")[2].split("; ")
    assert [mistake.split(":")[0] for mistake in mistakes] == ["model", "losses.law", "lossses"]


def test_another_file_another_kind_and_another_version_are_told_apart(tmp_path):
    path = tmp_path / "measured.json"
    assert "is not a JSON document" in refusal(path, "{")
    assert "is not a versatune/measured document (its schema: None)" in refusal(path, [1])
    assert "(its schema: 'versatune/other')" in refusal(path, {"schema": "versatune/other", "version": 2})
    message = refusal(path, {"schema": "versatune/measured", "version": 1})
    assert "has version 1, this release reads 2" in message


@pytest.mark.parametrize(
    ("there", "meant"),
    [
        ("versatune/measured.json", "versatune/measuerd.json"),
        ("versatune/measured.json", "versatune/Measured.json"),
        ("versatune/measured.json", "versatune/mesured.json"),
        ("versatune/measured.json", "versatnue/measured.json"),
        ("versatune/measured.json", "versatnue/measurd.json"),
        ("measured_losses.json", "measured-losses.json"),
        ("measured_losses.json", "measuredlosses.json"),
        ("measured-qwen-7b.json", "mesured-qwen-7b.json"),
    ],
)
def test_a_path_that_is_a_document_but_for_a_slip_is_misspelt(tmp_path, there, meant):
    Measured(model="m", losses={}).write(tmp_path / there)
    assert Measured.misspelt(tmp_path / meant) == tmp_path / there
    (tmp_path / there).write_text('{"schema": "versatune/other"}')
    assert Measured.misspelt(tmp_path / meant) is None


@pytest.mark.parametrize(
    ("there", "other"),
    [
        ("measured-7b.json", "measured-8b.json"),
        ("measured-1.json", "measured-12.json"),
        ("measured-qwen.json", "measured-gwen.json"),
        ("measured.json", "measured-qwen.json"),
        ("measured.json", "detection.json"),
        ("measured.json", "measured.json"),
        ("one/measured.json", "two/measured.json"),
        ("run-1/measured.json", "run-2/measured.json"),
    ],
)
def test_a_path_of_another_name_is_not_misspelt(tmp_path, there, other):
    Measured(model="m", losses={}).write(tmp_path / there)
    assert Measured.misspelt(tmp_path / other) is None
