"""`versatune quickstart | report`: parse, call one function, print."""

import os
import subprocess
import sys
from pathlib import Path

import click

from versatune_plugin import __version__
from versatune_plugin.history import history_path, read_history
from versatune_plugin.report import format_summary, plot_history


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Mix fine-tuning domains by measurement."""


@main.command()
@click.argument("output_dirs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(output_dirs: tuple[Path, ...]) -> None:
    """Show what runs drew and what it did, from their OUTPUT_DIRS."""
    for output_dir in output_dirs:
        path = history_path(output_dir)
        if not path.exists():
            raise click.ClickException(f"{path} does not exist: was this run made with a versatune block?")
        try:
            records = read_history(path)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        if not records:
            raise click.ClickException(f"{path} is empty: the run has not measured anything yet")
        click.echo(f"{output_dir}, step {records[-1]['step']}\n{format_summary(records)}")
        click.echo(f"plot: {plot_history(records, path.with_name('mixture.png'))}")


@main.command()
@click.argument("directory", default="versatune-quickstart", type=click.Path(file_okay=False, path_type=Path))
def quickstart(directory: Path) -> None:
    """Build a workspace with a real model and six domains in DIRECTORY and fine-tune it with Axolotl."""
    from versatune_plugin.quickstart import build_workspace

    try:
        config = build_workspace(directory)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"workspace {config.parent}; training with: axolotl train {config.name}")
    environment = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(
        [sys.executable, "-m", "axolotl.cli.main", "train", config.name, "--launcher", "python"],
        cwd=config.parent,
        env=environment | os.environ,
        check=False,
    )
    if finished.returncode:
        raise click.ClickException(f"training failed with status {finished.returncode}; what it said stands above")
    click.get_current_context().invoke(report, output_dirs=(config.parent / "out",))
