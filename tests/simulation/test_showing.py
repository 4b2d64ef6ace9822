import re
import subprocess
import sys

import pytest

from tests.simulation.histories import run_cli, write_history
from versatune_plugin.simulation import format_simulation, plot_simulation, simulate


def test_a_replay_says_that_losses_are_not_retrained_and_draws_beside_the_history(source):
    pytest.importorskip("matplotlib")
    status, output = run_cli(source, "--try", "sigma=2")
    assert status == 0, output
    assert "Losses are not re-trained" in output
    path = source / "versatune" / "simulation.png"
    assert output.endswith(f"plot: {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    status, output = run_cli(source, "--plot", source / "other.png")
    assert (source / "other.png").exists()


def test_a_long_replay_shows_a_dozen_of_its_steps(tmp_path):
    losses = {10 * number: (2.0, 1.5) for number in range(101)}
    write_history(tmp_path, losses=losses, num_steps=1000)
    table = format_simulation(simulate(tmp_path)).partition("\n== ")[
        2
    ]  # above it, a line of prose may begin with a number
    steps = re.findall(r"^ *([\d,]+) ", table, re.M)
    assert len(steps) == 11  # every 100th
    assert (steps[0], steps[-1]) == ("0", "1,000")


@pytest.mark.parametrize("number", [1, 3, 4])
def test_any_number_of_variants_is_drawn(source, tmp_path, number):
    pytest.importorskip("matplotlib")
    tries = [f"sigma={sigma}" for sigma in range(number - 1)]
    path = plot_simulation(simulate(source, tries), tmp_path / "plot.png")
    assert path.stat().st_size > 1000


def test_a_simulation_loads_no_heavy_library(source):
    code = (
        "import sys\nfrom pathlib import Path\nfrom versatune_plugin.simulation import *\n"
        f"format_simulation(simulate(Path({str(source)!r})))\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "trl", "axolotl", "accelerate", "datasets", "matplotlib", "pandas", "pyarrow"}
    assert heavy.isdisjoint(finished.stdout.split())
