"""Histories that are broken, half-written, empty, of other things, or not there."""

import pytest

from tests.report.histories import expansion, write
from versatune_plugin.history import history_path, read_what_is_readable, to_line
from versatune_plugin.report import make_report


@pytest.fixture
def folder(tmp_path):
    return write(expansion(num_updates=4), tmp_path / "out")


def harm(folder, number, line):
    """Replace a line, counted from 1."""
    path = history_path(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line
    path.write_bytes(b"".join(lines))


def test_a_sound_history_is_read_without_a_word(folder):
    records, problem = read_what_is_readable(history_path(folder))
    assert records == expansion(num_updates=4)
    assert problem is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"step": 40, "propor\n', "is not JSON"),
        (b"\xff\xfe\n", "is not JSON"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
        (b"\n", "is not JSON"),
        (b'{"loss": 2.1}\n', "is not a history record"),
        (b'{"step": 40}\n', "is not a history record"),
        (b"[1, 2]\n", "is not a history record"),
        (b'{"step": true, "proportions": {"law": 1}}\n', "is not a history record"),
        (b'{"step": 40, "proportions": [1]}\n', "has a 'proportions' that is no object of numbers by domain"),
        (b'{"step": 40, "proportions": {"law": "x"}}\n', "has a 'proportions' that is no object of numbers"),
        (b'{"step": 40, "proportions": {"law": NaN}}\n', "has a 'proportions' that is no object of numbers"),
        (b'{"step": 40, "proportions": {"law": 1}}\n', "is of other domains in 'proportions': ['law'], not"),
    ],
)
def test_a_line_that_is_none_is_named_and_the_rest_is_read(folder, line, words):
    harm(folder, 3, line)
    records, problem = read_what_is_readable(history_path(folder))
    assert [record["step"] for record in records] == [0, 20, 60, 80]
    assert f"{history_path(folder)}: line 3 {words}" in problem
    assert problem.endswith("4 lines can be read")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": {"law": 1.0}}, "is of other domains in 'losses'"),
        ({"potential": 0.5}, "has a 'potential' that is no object of numbers by domain"),
        ({"num_drawn": "many"}, "has a 'num_drawn' that is no number: 'many'"),
        ({"run": []}, "has a 'run' that is no object"),
        ({"step": 10}, "is of step 10, after one of step 20"),
    ],
)
def test_a_record_that_no_run_writes_is_named(folder, change, words):
    record = expansion(num_updates=4)[2] | change
    harm(folder, 3, to_line(record).encode())
    records, problem = read_what_is_readable(history_path(folder))
    assert len(records) == 4
    assert f"line 3 {words}" in problem


def test_a_half_written_last_line_is_named(folder):
    with history_path(folder).open("ab") as file:
        file.write(b'{"step": 100, "lo')
    records, problem = read_what_is_readable(history_path(folder))
    assert len(records) == 5
    assert "line 6 is half-written" in problem


def test_many_faults_are_counted_rather_than_listed(folder):
    path = history_path(folder)
    path.write_text(path.read_text() + "noise\n" * 1000)
    _, problem = read_what_is_readable(path)
    assert problem.count("noise") == 3
    assert "; and 997 more." in problem


@pytest.mark.parametrize(
    ("text", "words"), [(None, "does not exist"), (b"", "is empty"), (b"noise\n", "line 1 is not")]
)
def test_where_nothing_can_be_read_the_report_says_why(tmp_path, text, words):
    path = history_path(tmp_path)
    if text is not None:
        path.parent.mkdir()
        path.write_bytes(text)
    with pytest.raises(ValueError, match=words):
        make_report([tmp_path])


def test_the_readable_part_is_shown_with_a_warning_in_the_terminal_and_at_the_top_of_the_page(folder):
    harm(folder, 3, b"noise\n")
    report = make_report([folder])
    text = report.text()
    assert "warning: " in text
    assert "line 3 is not JSON" in text
    assert "finance" in text
    page = report.html()
    assert page.index("line 3 is not JSON") < page.index("What happened")
    assert page.index('class="warning"') < page.index("80 optimizer steps")
