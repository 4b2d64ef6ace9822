import math

import pytest

from tests.known_references import Trainer, document
from versatune_plugin.report import references


@pytest.fixture
def made(tmp_path):
    curves = {"$law_": [5.0, None, 3.0, 2.0], "_code": [math.pi, 2.0, 1.5, 1.75]}
    return document(tmp_path / "references.json", Trainer(curves))


def test_table_shows_the_lowest_loss_and_where_it_was(made):
    lines = references.format_references(made).splitlines()
    assert " ".join(lines[0].split()) == "domain reference loss at epoch untrained epochs seconds (last attempt)"
    assert lines[2].split()[:5] == ["_code", "1.5000", "2", "3.1416", "3"]


def test_plot_lies_beside_the_file_and_without_matplotlib_a_line_says_so(made, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def missing(*_):
        raise ImportError("matplotlib")

    said = []
    references.plot_beside(tmp_path / "references.json", made, said.append)
    assert (tmp_path / "references.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(references, "new_figure", missing)
    references.plot_beside(tmp_path / "references.json", made, said.append)
    assert "matplotlib" in said[-1]
