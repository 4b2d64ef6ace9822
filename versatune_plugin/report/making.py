"""The report of some output directories: as text for the terminal, as a page and PNGs on the disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from versatune_plugin.files.whole import write_whole
from versatune_plugin.report.drawing import visible
from versatune_plugin.report.page import Chapter, to_html
from versatune_plugin.report.parts import Cell, Chart, Section, Table
from versatune_plugin.report.run_sections import run_sections
from versatune_plugin.report.runs import Run, load_runs
from versatune_plugin.report.summary import format_summary
from versatune_plugin.tables import aligned

COMPARISON_FOLDER = Path("versatune-comparison")
"""Where the report of several runs goes, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is to be shown of one or more runs."""

    runs: Sequence[Run]
    comparison: Sequence[Section] = ()
    """Of several runs: what they are side by side."""

    def text(self) -> str:
        """For the terminal: each run's problems and summary, and the tables of the comparison."""
        tables = [
            f"{section.title}\n{format_table(part)}"
            for section in self.comparison
            for part in section.parts
            if isinstance(part, Table)
        ]
        return "\n\n".join([*map(_run_text, self.runs), *tables])

    def html(self) -> str:
        """The page.

        Raises:
            ImportError: jinja2 or matplotlib is not installed.
        """
        return to_html(self._title, self._chapters)

    def write(self, folder: Path | None = None) -> tuple[Path, list[Path]]:
        """Write the page, and the charts of its first chapter as PNGs.

        Args:
            folder: Where they go; by default beside the history of the one run, or in `COMPARISON_FOLDER`.

        Returns:
            The path of the page, and those of the PNGs.

        Raises:
            ImportError: jinja2 or matplotlib is not installed.
            OSError: They cannot be written.
        """
        try:
            from versatune_plugin.report.rendering import write_png

            html = self.html()
        except ImportError as error:
            raise ImportError(f"no page: {error}; pip install 'versatune_plugin[report]'") from error
        folder = folder or (self.runs[0].folder / "versatune" if self._is_one else COMPARISON_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / ("report.html" if self._is_one else "comparison.html")
        write_whole(page, html)
        charts = [part for section in self._chapters[0].sections for part in section.parts if isinstance(part, Chart)]
        names = [domain for run in self.runs for record in run.records[:1] for domain in record.proportions]
        runs = [run.name for run in self.runs]
        return page, [write_png(chart, folder, names, runs) for chart in charts]

    @property
    def _is_one(self) -> bool:
        return len(self.runs) == 1

    @property
    def _title(self) -> str:
        return f"{self.runs[0].name}: what the run did" if self._is_one else f"{len(self.runs)} runs compared"

    @cached_property
    def _chapters(self) -> list[Chapter]:
        """The comparison and the runs, each with what could not be read of it."""
        runs = [
            Chapter(
                title=run.name,
                subtitle=_subtitle(run),
                sections=run_sections(run),
                warnings=run.problem.splitlines() if run.problem else (),
                collapsed=not self._is_one,
            )
            for run in self.runs
        ]
        if self._is_one:
            return runs
        return [Chapter(title=self._title, sections=self.comparison), *runs]


def make_report(folders: Sequence[str | os.PathLike], baseline: str | None = None) -> Report:
    """What is to be shown of these output directories.

    Args:
        folders: Output directories, at least one.
        baseline: Name of the run that the others are compared with; None: the comparison chooses.

    Raises:
        ValueError: Nothing of any run can be shown; a folder is given twice; there is no run of the baseline's name.
    """
    runs = load_runs(folders)
    if not any(run.records or run.evaluations for run in runs):
        raise ValueError("\n".join(str(run.problem) for run in runs))
    if len(runs) == 1:
        if baseline is not None:
            raise ValueError(f"--baseline {baseline}: one run has nothing to be compared with; give several")
        return Report(runs=runs)
    from versatune_plugin.report.comparison import compare

    return Report(runs=runs, comparison=compare(runs, baseline))


def format_table(table: Table) -> str:
    """A table as aligned text, its caption above it."""
    rows = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    return "\n".join(filter(None, [table.caption, aligned([list(table.header), *rows])]))


def _run_text(run: Run) -> str:
    lines = [f"{run.name}, step {run.records[-1].step:,}" if run.records else run.name]
    lines += [f"warning: {run.problem}"] if run.problem else []
    lines += [format_summary(run.records)] if run.records else []
    return "\n".join(lines)


def _subtitle(run: Run) -> str:
    """Which run it is: the end of its path, and its strategy where that is known."""
    strategy = (run.facts.get("settings") or {}).get("strategy")
    folder = visible("/".join(Path(os.path.abspath(run.folder)).parts[-2:]))
    return folder + (f", strategy {strategy}" if strategy else "")
