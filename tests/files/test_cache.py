import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_plugin.files.cache import Log, log_path, read_log, text_digest

REPOSITORY = Path(__file__).parents[2]
IDENTITY = {"name": "SmolLM2-135M", "temperature": 1.0, "orders": [0, 2]}


@pytest.fixture
def path(tmp_path):
    """A log with two records."""
    with Log(tmp_path, "samples", IDENTITY) as log:
        log.append({"index": 0})
        log.append({"index": 1})
    return log.path


def reopened(path):
    with Log(path.parent, "samples", IDENTITY) as log:
        return log.found


# --- records ------------------------------------------------------------------------------------------------


def test_records_are_found_again_in_the_order_in_which_they_were_written(path):
    assert reopened(path) == [{"index": 0}, {"index": 1}]
    assert read_log(path.parent, "samples", IDENTITY) == [{"index": 0}, {"index": 1}]


def test_a_record_is_in_the_file_as_soon_as_it_was_appended(tmp_path):
    with Log(tmp_path, "samples", IDENTITY) as log:
        log.append({"index": 0})
        assert read_log(tmp_path, "samples", IDENTITY) == [{"index": 0}]


@settings(max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.text())
def test_floats_and_texts_read_back_as_they_were(tmp_path_factory, numbers, text):
    folder = tmp_path_factory.mktemp("cache")
    with Log(folder, "judgements", IDENTITY) as log:
        log.append({"probabilities": numbers, "text": text})
    (record,) = read_log(folder, "judgements", IDENTITY)
    assert struct.pack(f"{len(numbers)}d", *record["probabilities"]) == struct.pack(f"{len(numbers)}d", *numbers)
    assert record["text"] == text


@pytest.mark.parametrize("text", ["a\nb", "a\u2028b\x85c\x00", "half of a pair: \ud83d", "日本語"])
def test_any_text_is_one_line_and_has_a_digest(tmp_path, text):
    with Log(tmp_path, "samples", IDENTITY) as log:
        log.append({"text": text})
    assert log.path.read_bytes().count(b"\n") == 2
    assert read_log(tmp_path, "samples", IDENTITY) == [{"text": text}]
    assert re.fullmatch("[0-9a-f]{32}", text_digest(text))


def test_the_first_line_says_in_words_what_the_file_is(path):
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"schema": "versatune/samples", "version": 1, "identity": IDENTITY}


def test_each_kind_and_identity_has_a_file_of_its_own(tmp_path):
    other = IDENTITY | {"temperature": 0.5}
    paths = {log_path(tmp_path, kind, i) for kind in ("samples", "judgements") for i in (IDENTITY, other)}
    assert len(paths) == 4


def test_the_order_of_keys_and_a_tuple_for_a_list_do_not_make_another_identity(tmp_path):
    same = {"orders": (0, 2), "temperature": 1.0, "name": "SmolLM2-135M"}
    assert log_path(tmp_path, "samples", same) == log_path(tmp_path, "samples", IDENTITY)
    Log(tmp_path, "samples", IDENTITY).close()
    Log(tmp_path, "samples", same).close()


def test_reading_what_was_never_written_gives_nothing_and_makes_nothing(tmp_path):
    assert read_log(tmp_path / "cache", "samples", IDENTITY) == []
    assert not (tmp_path / "cache").exists()


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"index": 2, "te', b'{"index": 2}', b"\0\0\0", b'{"text": "\xc3', b"17\n"])
def test_a_torn_last_line_is_dropped_and_cut_off(path, torn, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_log(path.parent, "samples", IDENTITY) == [{"index": 0}, {"index": 1}]
    assert path.read_bytes() == whole + torn  # reading changes nothing
    with Log(path.parent, "samples", IDENTITY) as log:
        log.append({"index": 2})
    assert path.read_bytes() == whole + b'{"index": 2}\n'
    assert "the last line was torn" in caplog.text


def test_a_file_that_a_fault_left_empty_is_begun_again(path):
    os.truncate(path, 0)
    assert reopened(path) == []
    assert reopened(path) == []


def test_a_damaged_line_between_others_is_an_error_that_names_it(path):
    path.write_bytes(path.read_bytes().replace(b'{"index": 0}', b'{"index": 0'))
    with pytest.raises(ValueError, match=r"samples-.*, line 2 is damaged: delete this line"):
        reopened(path)


@pytest.mark.parametrize(
    ("found", "instead", "message"),
    [
        ('"versatune/samples"', '"versatune/judgements"', "is not a file of samples .*'versatune/judgements'"),
        ('{"schema"', '{"sch', "is not a file of samples"),
        ('"version": 1', '"version": 2', "has version 2, this release reads 1: move it away"),
        ("SmolLM2-135M", "SmolLM2-360M", "holds samples of something else"),
    ],
)
def test_a_file_of_something_else_is_an_error(path, found, instead, message):
    path.write_text(path.read_text().replace(found, instead))
    for read in (reopened, lambda path: read_log(path.parent, "samples", IDENTITY)):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cache"):
        Log(tmp_path / "cache", "samples", IDENTITY)


# --- a full disk --------------------------------------------------------------------------------------------

WRITE_UNTIL_FULL = """
import resource, signal, sys
from versatune_plugin.files.cache import Log

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def attempt(action):
    try: action()
    except OSError as error: print(error)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit(10)
attempt(lambda: Log(sys.argv[1], "samples", {}))
limit(resource.RLIM_INFINITY)
log = Log(sys.argv[1], "samples", {})
log.append({"index": 0, "text": "x" * 100})
for room in (40, 0):  # a line that is torn, and one of which nothing fits
    limit(log.path.stat().st_size + room)
    attempt(lambda: log.append({"index": 1, "text": "x" * 100}))
    assert log.path.read_bytes().endswith(b"\\n")
limit(resource.RLIM_INFINITY)
log.append({"index": 2})
"""


def test_a_full_disk_is_an_error_that_names_the_file_and_tears_no_line(tmp_path):
    command = [sys.executable, "-c", WRITE_UNTIL_FULL, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
    path = log_path(tmp_path, "samples", {})
    reasons = ["File too large", "only 40 of 125 bytes could be written", "File too large"]
    assert finished.stdout.splitlines() == [
        f"{path} cannot be written: {reason}; what was written so far is kept: "
        "make room and repeat the same command, it goes on from there"
        for reason in reasons
    ]
    assert [record["index"] for record in read_log(tmp_path, "samples", {})] == [0, 2]
