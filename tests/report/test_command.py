"""`versatune report` as it is typed."""

import sys

import pytest
from click.testing import CliRunner

from tests.report.histories import expansion, write
from versatune_plugin.cli import main
from versatune_plugin.files.history import history_path

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_one_run_is_a_table_here_and_a_page_beside_its_history(run, tmp_path):
    folder = write(expansion(num_updates=3), tmp_path / "out")
    shown = run(folder)
    assert shown.exit_code == 0, shown.output
    assert "out, step 60\ndomain" in shown.output
    assert f"page: {folder}/versatune/report.html (and 10 PNGs beside it)" in shown.output
    assert (folder / "versatune" / "report.html").exists()


def test_the_page_goes_where_it_is_told(run, tmp_path):
    folder = write(expansion(num_updates=1), tmp_path / "out")
    assert run(folder, "--output", "seen/here").exit_code == 0
    assert (tmp_path / "seen" / "here" / "report.html").exists()
    assert [path.name for path in (folder / "versatune").iterdir()] == ["history.jsonl"]


def test_several_runs_are_compared_in_a_folder_of_their_own(run, tmp_path):
    folders = [write(expansion(seed=seed, num_updates=3), tmp_path / f"run{seed}") for seed in (0, 1)]
    shown = run(*folders, "--baseline", "run1")
    assert shown.exit_code == 0, shown.output
    assert "run0, step 60" in shown.output
    assert "page: versatune-comparison/comparison.html" in shown.output
    assert (tmp_path / "versatune-comparison" / "comparison.html").exists()


def test_a_baseline_that_no_run_has_ends_with_their_names(run, tmp_path):
    folders = [write(expansion(seed=seed, num_updates=1), tmp_path / f"run{seed}") for seed in (0, 1)]
    shown = run(*folders, "--baseline", "best")
    assert shown.exit_code == 1
    assert "best" in shown.output
    assert "run0" in shown.output
    assert "run1" in shown.output


def test_a_broken_history_is_shown_with_status_0_and_one_without_a_line_ends_with_1(run, tmp_path):
    folder = write(expansion(num_updates=3), tmp_path / "out")
    with history_path(folder).open("a") as file:
        file.write("noise\n")
    shown = run(folder)
    assert shown.exit_code == 0
    assert "warning: " in shown.output
    assert "line 5 is not JSON" in shown.output
    history_path(folder).write_text("noise\n")
    shown = run(folder)
    assert shown.exit_code == 1
    assert "line 1 is not JSON" in shown.output


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_libraries_of_the_page_the_table_comes_with_what_to_install(run, tmp_path, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("versatune_plugin.report.rendering")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    shown = run(write(expansion(num_updates=1), tmp_path / "out"))
    assert shown.exit_code == 1
    assert "out, step 20\ndomain" in shown.output
    assert f"{missing}" in shown.output
    assert "pip install 'versatune_plugin[report]'" in shown.output
