"""Every benchmark still fits the package that it measures."""

import importlib
from pathlib import Path

import pytest

NAMES = sorted(file.stem for file in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported_and_says_what_it_takes(name, monkeypatch, capsys):
    pytest.importorskip("trl")
    pytest.importorskip("axolotl")
    module = importlib.import_module(name)
    if not hasattr(module, "main"):
        return
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out
