"""What an import loads, seen in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


HEAVY = (
    "torch",
    "transformers",
    "trl",
    "axolotl",
    "accelerate",
    "datasets",
    "jinja2",
    "lm_eval",
    "pyarrow",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "openai",
)


def run_python(code):
    """The standard output of a fresh interpreter."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def modules_loaded_by(statement):
    return set(run_python(f"import sys\n{statement}\nprint(*sys.modules)").split())
