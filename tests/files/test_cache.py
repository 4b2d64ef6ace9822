import signal
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_plugin.files.cache import Cache

REPOSITORY = Path(__file__).parents[2]
IDENTITY = {"name": "SmolLM2-135M", "temperature": 1.0, "orders": [0, 2]}


@pytest.fixture
def path(tmp_path):
    """A cache with two records."""
    with Cache(tmp_path) as cache:
        maker = cache.maker("samples", IDENTITY)
        cache.write(maker, "0/0", {"index": 0})
        cache.write(maker, "0/1", {"index": 1})
    return cache.path


def records(folder, kind="samples", identity=IDENTITY):
    with Cache(folder) as cache:
        return cache.read(cache.maker(kind, identity))


# --- records ------------------------------------------------------------------------------------------------


def test_records_are_found_again_by_what_made_them_and_what_was_asked(path):
    assert records(path.parent) == {"0/0": {"index": 0}, "0/1": {"index": 1}}
    assert records(path.parent, "judgements") == {}
    assert records(path.parent, identity=IDENTITY | {"temperature": 0.5}) == {}
    same = {"orders": (0, 2), "temperature": 1.0, "name": "SmolLM2-135M"}
    assert records(path.parent, identity=same) == records(path.parent)


@settings(max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.text())
def test_floats_and_texts_read_back_as_they_were(tmp_path_factory, numbers, text):
    folder = tmp_path_factory.mktemp("cache")
    with Cache(folder) as cache:
        cache.write(cache.maker("samples", IDENTITY), "a", {"numbers": numbers, "text": f"{text}\ud83d\x00\u2028"})
    (record,) = records(folder).values()
    assert struct.pack(f"{len(numbers)}d", *record["numbers"]) == struct.pack(f"{len(numbers)}d", *numbers)
    assert record["text"] == f"{text}\ud83d\x00\u2028"


def test_a_number_that_is_none_is_refused_and_a_second_answer_replaces_the_first(path):
    with Cache(path.parent) as cache:
        maker = cache.maker("samples", IDENTITY)
        with pytest.raises(ValueError, match="not JSON compliant"):
            cache.write(maker, "0/0", {"index": float("nan")})
        cache.write(maker, "0/0", {"index": 7})
    assert records(path.parent)["0/0"] == {"index": 7}


# --- kills and faults ---------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import itertools, sys
from versatune_plugin.files.cache import Cache
with Cache(sys.argv[1]) as cache:
    maker = cache.maker("samples", {})
    for number in itertools.count(len(cache.read(maker))):
        cache.write(maker, str(number), {"text": str(number) * 100})
        print(number, flush=True)
"""


def test_what_was_written_before_a_kill_is_there_and_the_next_process_goes_on(tmp_path):
    last = -1
    for _ in range(3):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
            said = last
            while said < last + 300:
                said = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().rpartition(b"\n")[0].split())])
        found = records(tmp_path, identity={})
        assert said <= len(found) - 1 <= said + 1  # one may be written and not yet said
        assert found == {str(number): {"text": str(number) * 100} for number in range(len(found))}
        last = len(found) - 1


WRITE_UNTIL_FULL = """
import resource, signal, sys
from versatune_plugin.files.cache import Cache

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit(10)
try: Cache(sys.argv[1])
except OSError as error: print(error)
limit(200_000)
written = 0
with Cache(sys.argv[1]) as cache:
    maker = cache.maker("samples", {})
    try:
        while True:
            cache.write(maker, str(written), {"text": "x" * 1000})
            written += 1
    except OSError as error: print(error)
    limit(resource.RLIM_INFINITY)
    cache.write(maker, "last", {})
print(written)
"""


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", WRITE_UNTIL_FULL, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
    *errors, written = finished.stdout.splitlines()
    assert len(errors) == 2
    for error in errors:
        assert error.startswith(f"{tmp_path}/cache.sqlite3 cannot be read or written: ")
        assert "what was written so far is kept" in error
    assert set(records(tmp_path, identity={})) == {*map(str, range(int(written))), "last"}
    assert int(written) > 10


def test_a_damaged_file_is_named_and_left_alone(path):
    with Cache(path.parent) as cache:
        for number in range(200):
            cache.write(cache.maker("samples", IDENTITY), str(number), {"text": "x" * 100})
    whole = path.read_bytes()
    for damaged in (b"\0" * 100 + whole[100:], whole[:8192] + b"\7" * 8192 + whole[16384:], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cache\.sqlite3 is damaged \(.*\): move it away"):
            records(path.parent)
        assert path.read_bytes() == damaged


def test_a_record_that_is_no_json_is_damage(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET record = '{'")
    connection.close()
    with pytest.raises(ValueError, match=r"cache\.sqlite3 is damaged"):
        records(path.parent)


def test_a_cache_of_another_release_is_an_error(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ValueError, match=r"cache\.sqlite3 has version 2, this release reads 1"):
        records(path.parent)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cache"):
        Cache(tmp_path / "cache")
    (tmp_path / "other" / "cache.sqlite3").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cache\.sqlite3 cannot be read or written"):
        Cache(tmp_path / "other")
