import pytest

pytest.importorskip("datasets")

from datasets import Dataset

from versatune_plugin.measuring.detection.texts import row_texts


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
