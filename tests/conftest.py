"""Shared by all tests: no network, no telemetry, one thread, and one tiny workspace."""

import logging
import os
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

os.environ |= {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

logging.getLogger("versatune_plugin")  # made before Axolotl is imported, whose class of loggers hides lines from caplog

hypothesis.settings.register_profile("ci", deadline=None)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A tiny model and three domains on disk (see tests/tiny.py), and the rows that Axolotl prepared of them.

    The processes of pytest share it: Axolotl takes longer to prepare the rows than to train on them.
    """
    from tests.tiny import make_workspace

    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "tiny"
    os.environ.setdefault("HF_DATASETS_CACHE", str(folder / "cache"))
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_workspace(folder)
    return folder
