"""The `versatune` commands (detect, references, check, schema, simulate, report, evaluate, ...): parse, call, print."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import click

from versatune_plugin import __version__
from versatune_plugin.files.history import history_path
from versatune_plugin.report import make_report


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Mix fine-tuning domains by measurement."""


@main.command()
@click.argument("output_dirs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--baseline", metavar="NAME", help="Of several runs: the one that the others are compared with.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where page and PNGs go.  [default: OUTPUT_DIR/versatune; of several runs: versatune-comparison]",
)
def report(output_dirs: tuple[Path, ...], baseline: str | None, output: Path | None) -> None:
    """Show what runs drew and what it did, from their OUTPUT_DIRS: a table here, and a page to look at."""
    with _readable_errors():
        made = make_report(output_dirs, baseline)
        click.echo(made.text())
        page, pictures = made.write(output)
        click.echo(f"page: {page} (and {len(pictures)} PNGs beside it)")


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--refresh", is_flag=True, help="Make the file anew; cached samples and judgements that fit are used.")
@click.option("--show", is_flag=True, help="Print the most typical samples of each domain, to judge the judge.")
@click.option("--compare", is_flag=True, help="FILES are detection.json files: show them side by side.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Where the PNG goes.")
def detect(files: tuple[Path, ...], refresh: bool, show: bool, compare: bool, plot: Path | None) -> None:
    """Find out what the base model of a YAML (FILES) already knows of each domain."""
    from versatune_plugin.measuring.detection.cached import judged_samples
    from versatune_plugin.measuring.detection.document import DetectionDocument
    from versatune_plugin.measuring.detection.run import cache_folder
    from versatune_plugin.report.detection import format_detection, format_samples, plot_detections

    if len(files) > 1 and not compare:
        raise click.UsageError("give one YAML, or several detection.json files with --compare")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise click.UsageError("detection runs as one process: start it without a launcher")
    with _readable_errors():
        if compare:
            documents = {str(file): DetectionDocument.read(file) for file in files}
        else:
            from versatune_plugin.hosts.axolotl.detection import detect_from_yaml

            _show_only_our_progress()
            document, file = detect_from_yaml(files[0], refresh, click.echo)
            documents = {str(file): document}
            click.echo(f"samples and judgements are kept in {cache_folder(file)}")
        for name, document in documents.items():
            click.echo(f"{name}: {document.base_model.name}\n{format_detection(document)}")
        if show and not compare:
            samples = judged_samples(cache_folder(file), document)
            click.echo(format_samples(*samples, document.domains))
        plot = plot or (Path("detections.png") if compare else file.with_suffix(".png"))
        click.echo(f"plot: {plot_detections(_by_model(documents), plot)}")


def _by_model(documents: dict) -> dict:
    """Documents by the name of their model, or by their file where two have the same model."""
    names = [document.base_model.name for document in documents.values()]
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else documents, documents.values(), strict=True))


def _show_only_our_progress() -> None:
    """Loading rows and weights takes seconds; their bars would stand between ours."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bars()
    disable_progress_bar()


@contextmanager
def _readable_errors():
    """What a user can mend ends in one message instead of a traceback."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--refresh", is_flag=True, help="Forget the file and all runs behind it, and make it anew.")
@click.option(
    "--launcher",
    type=click.Choice(["python", "accelerate", "torchrun"]),
    default="python",
    show_default=True,
    help="How the runs of the domains are started; arguments for it follow after --.",
)
@click.argument("launcher_args", nargs=-1, type=click.UNPROCESSED)
def references(config: Path, refresh: bool, launcher: str, launcher_args: tuple[str, ...]) -> None:
    """Fine-tune the reference model of an Axolotl YAML on each domain alone and keep its lowest held-out losses."""
    from versatune_plugin.report.references import format_references, plot_beside

    with _readable_errors():
        from versatune_plugin.hosts.axolotl.references import make_references

        file, document = make_references(
            config, refresh=refresh, launcher=launcher, launcher_args=list(launcher_args), say=click.echo
        )
        click.echo(f"{file} ({document.reference_model.name}, {document.unit})\n{format_references(document)}")
        plot_beside(file, document, click.echo)


@main.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar='"KEY=VALUE ..."',
    help='A variant: keys below `versatune:`, such as "sigma=1 expansion.delta=0.1"; null removes one. Repeatable.',
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the PNG goes.  [default: simulation.png beside the history]",
)
def simulate(source: Path, tries: tuple[str, ...], plot: Path | None) -> None:
    """Show the proportions of SOURCE under its own settings and under others, without training.

    SOURCE is the OUTPUT_DIR of a run or its history.jsonl, whose losses are replayed.
    """
    from versatune_plugin import simulation

    with _readable_errors():
        simulated = simulation.simulate(source, tries)
        click.echo(simulation.format_simulation(simulated))
        plot = plot or (history_path(source) if source.is_dir() else source).with_name("simulation.png")
        click.echo(f"plot: {simulation.plot_simulation(simulated, plot)}")


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--processes", type=click.IntRange(min=1), help="Processes of the run.  [default: WORLD_SIZE, or 1]")
def check(config: Path, processes: int | None) -> None:
    """Find the mistakes in an Axolotl YAML without loading a model, and print the plan of its run.

    The rows are prepared as `axolotl preprocess` does it. Of a YAML without datasets, the block alone is checked.
    """
    if "LOCAL_RANK" in os.environ:
        raise click.UsageError("this checks as one process: start it without a launcher, with --processes N")
    with _readable_errors():
        from versatune_plugin.hosts.axolotl.check import check as check_yaml

        _show_only_our_progress()
        click.echo(check_yaml(config, processes))


@main.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output.")
@click.option("--block", is_flag=True, help="Of the `versatune:` block alone, for a file that holds nothing else.")
def schema(output: Path | None, block: bool) -> None:
    """Print the JSON schema of an Axolotl YAML with a `versatune:` block, for completion in editors."""
    from versatune_plugin.config.schema import block_schema, yaml_schema

    text = json.dumps(block_schema() if block else yaml_schema(), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    with _readable_errors():
        output.write_text(text + "\n", encoding="utf-8")
    click.echo(
        f"in an editor with YAML support, first line of a YAML beside it: # yaml-language-server: $schema={output.name}"
    )


@main.command()
@click.argument("model", required=False)
@click.option(
    "--domains", multiple=True, metavar="NAME", help="A domain, or all; repeatable.  [default: FILE's, else all]"
)
@click.option(
    "--tasks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A YAML with benchmarks of your own.",
)
@click.option("--list", "only_list", is_flag=True, help="Show what there is to evaluate, and do nothing.")
@click.option("--chat-template", is_flag=True, help="Put prompts into the model's chat template.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of each task: a trial.")
@click.option("--batch-size", default="8", show_default=True, metavar="N|auto", help="Rows per forward pass.")
@click.option("--device", help="Such as cuda:0.  [default: the accelerator if there is one, else the CPU]")
@click.option("--base", metavar="MODEL", help="The model of an adapter whose own record does not lead there.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="For versatune/evaluation.json.  [default: MODEL's folder]",
)
@click.option("--run-model-code", is_flag=True, help="Execute code that the model writes (HumanEval, MBPP).")
@click.option("--trust-remote-code", is_flag=True, help="Run model code that comes with the weights.")
@click.option("--refresh", is_flag=True, help="Run again what has a result, which stays until there is a new one.")
def evaluate(
    model: str | None,
    domains: tuple[str, ...],
    tasks: Path | None,
    output: Path | None,
    base: str | None,
    only_list: bool,
    **options,
) -> None:
    """Run the benchmarks of domains on MODEL with lm-evaluation-harness.

    MODEL is the folder of a model or an adapter (a run's OUTPUT_DIR, a checkpoint), or a model's name on a hub. Results
    are written after each benchmark; a run that was cut off goes on with what is missing.
    """
    from versatune_plugin.evaluation import run, tables

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("evaluation runs as one process: start it without a launcher (WORLD_SIZE unset or 1)")
    if only_list:
        with _readable_errors():
            click.echo(run.list_benchmarks(domains, tasks))
        return
    if model is None:
        raise click.UsageError("which MODEL? (--list needs none)")
    with _readable_errors():
        _show_only_our_progress()
        file, evaluation, failed = run.evaluate(
            model, domains, tasks_file=tasks, output=output, base=base, options=run.Options(**options), say=click.echo
        )
    click.echo(f"{file}: {evaluation.model.name}\n{tables.format_evaluation(evaluation)}")
    if failed:
        raise click.ClickException(f"failed, for the reasons above: {', '.join(failed)}")
    if not evaluation.domains:
        raise click.ClickException("no benchmark could be run, for the reasons above")


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


if __name__ == "__main__":
    main()
