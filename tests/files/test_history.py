import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.files.history import History, history_path, read_history
from versatune_plugin.files.record import Record, fields

REPOSITORY = Path(__file__).parents[2]


def steps(path):
    return [record.step for record in read_history(path)]


def line(step: int, **more) -> Record:
    drawn = {"num_drawn": step, "drawn_by_domain": {"law": step}}
    return Record(**{"step": step, "proportions_before": {"law": 1.0}, "proportions": {"law": 1.0}} | drawn | more)


@pytest.fixture
def path(tmp_path):
    return history_path(tmp_path / "out")


@pytest.fixture
def two_updates(path):
    history = History(path)
    for step in (0, 50):
        history.append(line(step))
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


# --- lines --------------------------------------------------------------------------------------------------


def test_the_history_lies_below_the_output_directory(tmp_path):
    assert history_path(tmp_path) == tmp_path / "versatune" / "history.jsonl"
    assert history_path(str(tmp_path)) == history_path(tmp_path)


def test_records_read_back_as_they_were_written(path):
    records = [line(0, losses={"law": 1.25, "médecine\u2028": None}, expanded=None), line(50, test={"left": 0.5})]
    history = History(path)
    for record in records:
        history.append(record)
    assert read_history(path) == history.read() == records
    assert path.read_text(encoding="ascii").count("\n") == 2


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_floats_read_back_to_the_same_double(number):
    read = Record.model_validate_json(line(0, losses={"law": number}).to_line()).losses["law"]
    assert struct.pack("d", read) == struct.pack("d", number)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_know_is_no_record(number):
    with pytest.raises(ValueError, match="finite"):
        line(0, losses={"law": number})


def test_a_loss_that_an_update_was_skipped_for_is_on_record(path):
    history = History(path)
    history.append(line(50, losses={"law": -1.0}, skipped="'law' has loss -1.0"))
    assert read_history(path)[0].losses == {"law": -1.0}


def test_every_quantity_says_what_it_is():
    told = list(fields())
    assert [name for name, *_ in told] == list(json.loads(line(0).to_line()))
    assert all(meaning for _, _, meaning in told)


def test_a_key_of_a_later_release_is_passed_over_and_a_missing_one_is_unknown_or_refused():
    needed = {name: value for name, value in json.loads(line(3).to_line()).items() if value is not None}
    record = Record.model_validate(needed | {"goal_score": 0.5})
    assert (record.step, record.losses, record.note) == (3, None, None)
    for name in needed:
        with pytest.raises(ValueError, match=rf"{name}\n  Field required"):
            Record.model_validate({key: value for key, value in needed.items() if key != name})


@pytest.mark.parametrize("given", ['{"step": 5', "[1]", "5", '{"epoch": 1}'])
def test_a_line_that_is_no_record_is_an_error_that_names_the_line(two_updates, given):
    with two_updates.open("a") as file:
        file.write(given + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 3 is not"):
        read_history(two_updates)


@pytest.mark.parametrize("torn", [b'{"step": 5', b'{"step": 5}', b'{"d": "\xc3'])
def test_a_last_line_that_a_kill_tore_is_not_read(two_updates, torn):
    with two_updates.open("ab") as file:
        file.write(torn)
    assert steps(two_updates) == [0, 50]


# --- start and resume ---------------------------------------------------------------------------------------


def test_a_new_run_moves_the_history_of_the_old_one_aside(two_updates):
    History(two_updates).append(line(7))
    assert steps(two_updates) == [7]
    assert steps(two_updates.with_name("history.previous.jsonl")) == [0, 50]


def test_every_old_history_is_kept(two_updates):
    for step in (7, 8):
        History(two_updates).append(line(step))
    History(two_updates)
    kept = {path.name: steps(path) for path in two_updates.parent.glob("history.previous*")}
    assert kept == {
        "history.previous.jsonl": [0, 50],
        "history.previous-2.jsonl": [7],
        "history.previous-3.jsonl": [8],
    }


def test_a_run_that_ends_before_its_first_line_leaves_nothing_to_keep(two_updates):
    History(two_updates)
    History(two_updates).append(line(7))
    assert [path.name for path in two_updates.parent.glob("history.previous*")] == ["history.previous.jsonl"]


def test_a_history_is_gone_on_with_however_its_path_is_written(two_updates, monkeypatch):
    monkeypatch.chdir(two_updates.parent)
    History(Path(two_updates.name), two_updates, 50).append(line(100))
    assert steps(two_updates) == [0, 50, 100]
    assert not list(two_updates.parent.glob("history.previous*"))


def test_a_folder_that_was_removed_is_made_again_at_the_end(two_updates):
    history = History(two_updates, two_updates, 50)
    shutil.rmtree(two_updates.parent)
    history.append(line(100))
    history.finish()
    assert steps(two_updates) == [100]


def test_a_resumed_run_cuts_the_lines_after_its_checkpoint(two_updates):
    History(two_updates).append(line(100))
    history = History(two_updates, two_updates, 0)
    assert steps(two_updates) == []  # the new run above moved steps 0 and 50 aside
    history.append(line(50))
    assert steps(two_updates) == [50]


@pytest.mark.parametrize(("until_step", "kept"), [(0, [0]), (49, [0]), (50, [0, 50]), (99, [0, 50])])
def test_a_line_at_the_step_of_the_checkpoint_is_kept(two_updates, until_step, kept):
    assert [r.step for r in History(two_updates, two_updates, until_step).read()] == kept
    assert steps(two_updates) == kept


def test_a_resumed_run_appends_to_the_very_bytes_it_found(two_updates):
    before = two_updates.read_bytes()
    History(two_updates, two_updates, 50).append(line(100))
    assert two_updates.read_bytes() == before + line(100).to_line().encode()


@pytest.mark.parametrize("torn", [b'{"step": 100, "lo', b'{"step": 100}', b"\0\0\0\0", b'{"step": 100, "d": "\xc3'])
def test_a_torn_last_line_is_repaired_on_resume(two_updates, torn):
    with two_updates.open("ab") as file:
        file.write(torn)
    History(two_updates, two_updates, 200).append(line(100))
    assert steps(two_updates) == [0, 50, 100]


def test_a_resumed_run_without_a_history_starts_one(path):
    History(path, path, 50).append(line(100))
    assert steps(path) == [100]


def test_a_run_resumed_into_another_folder_takes_the_lines_of_the_old_one_along(two_updates, tmp_path):
    before, elsewhere = two_updates.read_bytes(), history_path(tmp_path / "elsewhere")
    History(elsewhere).append(line(7))
    History(elsewhere, two_updates, 0).append(line(25))
    assert steps(elsewhere) == [0, 25]
    assert steps(elsewhere.with_name("history.previous.jsonl")) == [7]
    assert two_updates.read_bytes() == before


# --- disks --------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path):
    (tmp_path / "out").write_text("a file where the output directory should be")
    with pytest.raises(OSError, match="out"):
        History(history_path(tmp_path / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_an_error_at_the_start(path):
    path.parent.mkdir(parents=True)
    path.parent.chmod(0o500)
    with pytest.raises(PermissionError):
        History(path)


def test_memory_does_not_grow_with_the_file(path):
    history = History(path)
    tracemalloc.start()
    for step in range(40):
        history.append(line(step, note="x" * 99_950))
    in_use, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 3.9e6
    assert in_use < 0.5e6


def test_a_spoilt_file_does_not_fail_the_end_of_a_run(two_updates, caplog):
    history = History(two_updates, two_updates, 50)
    with two_updates.open("r+b") as file:
        file.write(b"spoilt")
    assert history.read() == []
    assert "cannot be read" in caplog.text
    two_updates.unlink()
    history.append(line(100))
    assert steps(two_updates) == [100]


def test_a_folder_that_vanished_is_reported_and_training_goes_on(two_updates, caplog):
    history = History(two_updates, two_updates, 50)
    away = two_updates.parent.rename(two_updates.parent.with_name("away"))
    history.append(line(100))
    assert caplog.messages[0].startswith("1 history line(s) wait in memory")
    assert [record.step for record in history.read()] == [100]
    away.rename(two_updates.parent)
    history.flush()
    assert steps(two_updates) == [0, 50, 100]


WRITE_UNTIL_FULL = """
import logging, resource, signal, sys
from pathlib import Path
from versatune_plugin.files.history import History, read_history
from versatune_plugin.files.record import Record

def line(step, **more):
    law = {"law": 1.0}
    drawn = {"num_drawn": step, "drawn_by_domain": {"law": step}}
    return Record(step=step, proportions_before=law, proportions=law, **drawn, **more)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

logging.basicConfig(stream=sys.stdout, format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
history = History(path)
history.append(line(0, note="x" * 100))
limit(path.stat().st_size + 40)
for step in (1, 2):
    history.append(line(step, note="x" * 100))
    print("on disk", [record.step for record in read_history(path)])
limit(resource.RLIM_INFINITY)
history.append(line(3))
print("on disk", [record.step for record in read_history(path)])
"""


def test_a_line_that_does_not_fit_is_taken_back_and_comes_with_the_next_one(path):
    finished = subprocess.run(
        [sys.executable, "-c", WRITE_UNTIL_FULL, str(path)], capture_output=True, text=True, cwd=REPOSITORY
    )
    lines = finished.stdout.splitlines()
    assert [line for line in lines if line.startswith("on disk")] == [
        "on disk [0]",
        "on disk [0]",
        "on disk [0, 1, 2, 3]",
    ], finished.stderr
    assert lines[0].startswith("1 history line(s) wait in memory")
    assert lines[2].startswith("2 history line(s) wait in memory")


def test_a_read_only_disk_is_an_error_at_the_start(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        History(history_path(small_disk))


def test_a_full_disk_tears_no_line_and_loses_none(small_disk, caplog):
    path = history_path(small_disk)
    history = History(path)
    filler = small_disk / "checkpoint"
    filler.write_bytes(b"x" * 40_000)
    for step in range(30):  # the disk is full after some 15
        history.append(line(step, note="x" * 280))
    on_disk = steps(path)
    assert on_disk == list(range(len(on_disk)))
    assert 5 < len(on_disk) < 30
    assert "No space left" in caplog.text or "bytes could be written" in caplog.text
    filler.unlink()
    history.append(line(30))
    assert steps(path) == list(range(31))


def test_a_full_disk_at_the_start_of_a_resumed_run_leaves_its_history_alone(small_disk):
    path = history_path(small_disk)
    history = History(path)
    for step in range(20):
        history.append(line(step, note="x" * 580))
    before = path.read_bytes()
    left = os.statvfs(small_disk)
    (small_disk / "checkpoint").write_bytes(b"x" * (left.f_bavail * left.f_frsize))
    with pytest.raises(OSError, match="No space left"):
        History(path, path, 10)
    assert path.read_bytes() == before


# --- kills --------------------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from versatune_plugin.files.history import History
from versatune_plugin.files.record import Record

def line(step, **more):
    law = {"law": 1.0}
    drawn = {"num_drawn": step, "drawn_by_domain": {"law": step}}
    return Record(step=step, proportions_before=law, proportions=law, **drawn, **more)

history = History(Path(sys.argv[1]), Path(sys.argv[1]), int(sys.argv[2]))
print(flush=True)
step = int(sys.argv[2])
while True:
    step += 1
    history.append(line(step, note="x" * (step * 997 % 9000)))
"""


def test_a_killed_run_leaves_whole_lines_but_for_the_last_and_goes_on_where_it_was(path):
    rng = random.Random(0)
    last = 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as writer:
            assert writer.stdout.readline() == b"\n"  # it has begun
            time.sleep(rng.uniform(0, 0.08))
            writer.send_signal(signal.SIGKILL)
        written = steps(path)
        assert written == list(range(1, len(written) + 1))
        assert len(written) >= last
        last = len(written)
    assert last > 12
