import json

import pytest

from tests.detections import DOMAINS, MODEL, make_document
from versatune_plugin.measuring.detection.document import DetectionDocument, ModelDescription


def check(document, **given):
    given = {"domains": DOMAINS, "model": MODEL, "remedy": "Do it again", **given}
    return document.check_fits(path="out/detection.json", **given)


def test_a_document_reads_back_as_it_was_written(tmp_path):
    document = make_document()
    document.write(tmp_path / "detection.json")
    assert DetectionDocument.read(tmp_path / "detection.json") == document
    written = json.loads((tmp_path / "detection.json").read_text())
    assert (written["schema"], written["version"]) == ("versatune/detection", 1)


@pytest.mark.parametrize(("key", "value"), [("num_samples", "many"), ("count", "words"), ("colour", "red")])
def test_a_document_that_somebody_spoilt_is_an_error_that_names_the_key(tmp_path, key, value):
    path = tmp_path / "detection.json"
    make_document().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=key):
        DetectionDocument.read(path)


def test_a_history_keeps_of_a_detection_where_the_start_comes_from(tmp_path):
    assert make_document().source(tmp_path) == {
        "file": str(tmp_path),
        "base_model": "words",
        "judge": {"kind": "classifier"},
        "num_samples": 8,
        "num_judged": 7,
        "count": "samples",
        "intervals": {"law": (0.4, 0.6), "medicine": (0.15, 0.35), "code": (0.15, 0.35)},
        "seconds": 3.0,
    }


def test_a_detection_of_the_same_domains_model_and_data_fits():
    document = make_document(data={"law": "1"})
    assert check(document, domains=DOMAINS[::-1], data_fingerprints={"law": "1", "code": "2"}) is None
    assert check(document, model=ModelDescription(name="elsewhere/words", fingerprint="f00d")) is None
    with pytest.raises(ValueError, match="the data of 'law' has changed"):  # the very check that passed above
        check(document, data_fingerprints={"law": "2", "code": "2"})


def test_a_model_without_a_fingerprint_is_compared_by_its_name():
    check(make_document(), model=ModelDescription(name="words", fingerprint=None))
    with pytest.raises(ValueError, match="a different model"):
        check(make_document(), model=ModelDescription(name="other", fingerprint=None))


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (
            {"domains": ("law", "medicine", "coding")},
            ["out/detection.json names an unknown domain 'code'; did you mean 'coding'?", "no value for domain"],
        ),
        (
            {"model": ModelDescription(name="words", fingerprint="beef")},
            ["out/detection.json was measured on a different model (words, fingerprint f00d; this one: words, finge"],
        ),
        (
            {"data_fingerprints": {"law": "2", "medicine": "1", "code": "2"}},
            ["the data of 'law', 'code' has changed since out/detection.json was measured"],
        ),
        (
            {"domains": ("law",), "model": ModelDescription(name="words", fingerprint="beef")},
            ["unknown domain 'medicine'", "a different model"],
        ),
    ],
    ids=["domains", "model", "data", "all at once"],
)
def test_a_detection_of_something_else_is_refused_with_what_to_do(given, messages):
    with pytest.raises(ValueError, match=r"\. Do it again$") as raised:
        check(make_document(), **given)
    for message in messages:
        assert message in str(raised.value)
