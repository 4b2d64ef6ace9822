import pytest

from tests.simulation.histories import write_history


@pytest.fixture
def source(tmp_path):
    """The output directory of a run with two updates."""
    write_history(tmp_path)
    return tmp_path
