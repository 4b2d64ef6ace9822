import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("filelock")

from versatune_plugin.files.locking import locked

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from versatune_plugin.files.locking import locked
with locked(sys.argv[1]):
    print(flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        try:
            assert holder.stdout.readline() == b"\n"
            with pytest.raises(RuntimeError, match="cache is in use by another process"), locked(tmp_path / "cache"):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with locked(tmp_path / "cache"):
        pass
    with locked(tmp_path / "cache"):  # and after an orderly end
        pass


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cache"), locked(tmp_path / "cache"):
        pass
