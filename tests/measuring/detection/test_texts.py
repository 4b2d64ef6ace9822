import pytest

pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict

from tests.tiny import write_jsonl
from versatune_plugin.hosts.axolotl.config import BY_COLUMN
from versatune_plugin.measuring.detection.texts import read_rows, row_texts, texts_by_domain, texts_fingerprint


def of_one(row: dict, *more_columns: str) -> str:
    (text,) = row_texts(Dataset.from_list([row]), more_columns)
    return text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Add.", "input": "", "output": "3", "source": "owner/name"}, "Add.\n3"),
        (
            {"id": "7", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            "Hi\nHo",
        ),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, "Hi\nHo"),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho"}, "Hi\nHo"),
        ({"body": "of a column with another name", "number": 3}, "of a column with another name"),
        ({"text": None, "output": "3"}, "3"),
    ],
)
def test_a_rows_text_is_what_was_said_and_not_where_it_comes_from(row, text):
    assert of_one(row) == text


def test_columns_that_the_entry_names_hold_text_too(tmp_path):
    path = write_jsonl(tmp_path / "law.jsonl", [{"frage": "Wer?", "text": "Ich.", "id": "x"}])
    entry = {"path": str(path), "ds_type": "json"}
    for named in ({"field_instruction": "frage"}, {"type": {"field_instruction": "frage", "format": "{instruction}"}}):
        assert texts_by_domain([entry | named], ["law"], None) == {"law": ["Wer?\nIch."]}


def test_several_entries_make_one_domain_and_a_column_makes_several(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": "b"}, {"text": "c"}])
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [{"text": "d", "subject": "law"}, {"text": "e", "subject": "art"}])
    entries = [{"path": str(path), "ds_type": "json"} for path in (one, mixed, two)]
    found = texts_by_domain(entries, ["law", BY_COLUMN, "law"], "subject")
    assert found == {"law": ["a", "d", "b", "c"], "art": ["e"]}


def test_saved_datasets_folders_and_other_kinds_of_files_are_read(tmp_path):
    rows = Dataset.from_list([{"text": "a"}])
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": rows, "test": Dataset.from_list([{"text": "t"}])}).save_to_disk(tmp_path / "splits")
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_parquet(tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "folder" / "train.jsonl", [{"text": "f"}])
    for name, text in (("saved", "a"), ("splits", "a"), ("rows.csv", "a"), ("rows.parquet", "a"), ("folder", "f")):
        assert row_texts(read_rows({"path": str(tmp_path / name)})) == [text], name
    assert row_texts(read_rows({"path": str(tmp_path / "splits"), "split": "test"})) == ["t"]


def test_an_entry_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"datasets: '.*/none\.jsonl' cannot be read"):
        read_rows({"path": str(tmp_path / "none.jsonl"), "ds_type": "json"})


def test_a_missing_column_is_named_with_its_entry(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"versatune\.domain_column: .*rows\.jsonl: no column 'subject'"):
        texts_by_domain([{"path": str(path), "ds_type": "json"}], [BY_COLUMN], "subject")


def test_a_fingerprint_tells_texts_their_order_and_their_borders_apart():
    prints = {texts_fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab"], [])}
    assert len(prints) == 5
    assert texts_fingerprint(["ab", "\ud800"]) == texts_fingerprint(["ab", "\ud800"])
