"""Histories that are broken, half-written, empty, of other things, or not there."""

import json
import math

import pytest

from tests.report.histories import NAMES, expansion, typed, write
from versatune_plugin.files.history import history_path
from versatune_plugin.report import make_report
from versatune_plugin.report.readable import read_what_is_readable


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
    assert records == typed(expansion(num_updates=4))
    assert problem is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"step": 40, "propor\n', "is not JSON"),
        (b"\xff\xfe\n", "is not JSON"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
        (b"\n", "is not JSON"),
        (b'{"loss": 2.1}\n', "is not a history record"),
        (b'{"step": 40}\n', "has an unusable 'num_drawn'"),
        (b"[1, 2]\n", "is not a history record"),
    ],
)
def test_a_line_that_is_none_is_named_and_the_rest_is_read(folder, line, words):
    harm(folder, 3, line)
    records, problem = read_what_is_readable(history_path(folder))
    assert [record.step for record in records] == [0, 20, 60, 80]
    assert f"{history_path(folder)}: line 3 {words}" in problem
    assert problem.endswith("4 lines can be read")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": True}, "has an unusable 'step'"),
        ({"proportions": {"law": "x"}}, "has an unusable 'proportions.law'"),
        ({"proportions": {"law": -0.5}}, "has an unusable 'proportions.law'"),
        ({"proportions": {"law": math.nan}}, "has an unusable 'proportions.law'"),
        ({"proportions": {"law": 1.0}}, "is of other domains in 'proportions': ['law'], not"),
        ({"losses": {"law": 1.0}}, "is of other domains in 'losses'"),
        ({"potential": 0.5}, "has an unusable 'potential'"),
        ({"num_drawn": "many"}, "has an unusable 'num_drawn': Input should be a valid integer, got 'many'"),
        ({"num_drawn": 2**63}, "has an unusable 'num_drawn'"),
        ({"loss_errors": dict.fromkeys(NAMES, -1.0)}, "has an unusable 'loss_errors.medicine'"),
        ({"change_since_start": [1]}, "has an unusable 'change_since_start'"),
        ({"unit": [1]}, "has an unusable 'unit'"),
        ({"test": {"left": "a"}}, "has an unusable 'test.left'"),
        ({"probe": {"law": "x"}}, "has an unusable 'probe.law'"),
        ({"run": []}, "has an unusable 'run'"),
        ({"run": {"settings": "x"}}, "has an unusable 'run.settings'"),
        ({"run": {"settings": {"strategy": 5}}}, "has an unusable 'run.settings.strategy'"),
        ({"run": {"settings": {"expansion": "law"}}}, "has an unusable 'run.settings.expansion'"),
        ({"run": {"num_steps": "24"}}, "has an unusable 'run.num_steps'"),
        ({"step": 20}, "is of step 20, after one of step 20"),
        ({"step": 10}, "is of step 10, after one of step 20"),
    ],
)
def test_a_record_that_no_run_writes_is_named(folder, change, words):
    record = expansion(num_updates=4)[2] | change
    harm(folder, 3, (json.dumps(record) + "\n").encode())
    records, problem = read_what_is_readable(history_path(folder))
    assert len(records) == 4
    assert f"line 3 {words}" in problem


def test_a_half_written_last_line_is_named(folder):
    with history_path(folder).open("ab") as file:
        file.write(b'{"step": 100, "lo')
    records, problem = read_what_is_readable(history_path(folder))
    assert len(records) == 5
    assert "line 6 is half-written" in problem


def test_a_whole_last_line_counts_without_its_line_break(folder):
    path = history_path(folder)
    path.write_bytes(path.read_bytes().rstrip())
    records, problem = read_what_is_readable(path)
    assert (len(records), problem) == (5, None)


def test_a_history_that_cannot_be_read_does_not_stop_the_report_of_another(folder, tmp_path):
    history_path(tmp_path / "other").mkdir(parents=True)
    report = make_report([folder, tmp_path / "other"])
    assert "history.jsonl cannot be read: " in report.runs[1].problem
    assert len(report.runs[0].records) == 5


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
