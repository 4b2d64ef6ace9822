"""Which benchmarks measure a domain: the shipped benchmarks.yml, and a file of the user's own over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from versatune_plugin.config.blocks import Block, Problem, readable
from versatune_plugin.domains import check_domain_names, nearest

SHIPPED = Path(__file__).with_name("benchmarks.yml")


class Benchmark(Block):
    """Tasks of lm-evaluation-harness, and how their results become one score in [0, 1]."""

    title: str | None = Field(None, description="What people call it. Default: its key.")
    tasks: list[str] = Field([], description="Names that the harness knows: tasks, groups or tags; one or a list.")
    metric: str | None = Field(None, description="As the harness calls it, such as acc; higher must be better.")
    filter: str | None = Field(None, description="Which filter's answers count, where the task has several.")
    scale: float = Field(1.0, gt=0, description="The metric's best value; 100 for percentages. The score is divided.")
    weight: Literal["rows", "tasks"] = Field(
        "rows", description="What counts the same in the mean over several tasks: each row, or each task."
    )
    num_fewshot: int | None = Field(None, ge=0, description="Solved examples in a prompt. Default: each task's own.")
    runs_code: bool = Field(False, description="Whether it executes code that the model writes.")
    missing: str | None = Field(None, description="Why it cannot be run; instead of `tasks`.")

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_or_several(cls, given):
        return [given] if isinstance(given, str) else given

    @property
    def definition(self) -> dict:
        """All that changes its score, as far as this file says it."""
        return self.model_dump(exclude={"title"}, exclude_defaults=True)

    def problems(self) -> list[Problem]:
        """Contradictions between keys that are valid one by one."""
        if self.missing:
            return [(("tasks",), "must be empty where `missing` says why there are none")] if self.tasks else []
        found: list[Problem] = []
        if not self.tasks:
            found.append((("tasks",), "names no task of the harness (or say with `missing` why there is none)"))
        if not self.metric:
            found.append((("metric",), "is needed: which of the task's metrics is the score, such as acc"))
        return found


class TaskFile(Block):
    """benchmarks.yml, or a file of the user's own."""

    include_path: str | None = Field(
        None, description="Folder with task YAMLs of your own for the harness, seen from this file."
    )
    domains: dict[str, dict[str, Benchmark | None]] = Field(
        description="Domain -> benchmark -> what it is; null takes a shipped benchmark away."
    )

    @field_validator("domains")
    @classmethod
    def _valid_names(cls, domains):
        check_domain_names(list(domains))
        return domains


@dataclass(frozen=True)
class Suite:
    """Benchmarks by domain and name, in order."""

    domains: Mapping[str, Mapping[str, Benchmark]]
    own: Sequence[str] = ()
    """Domains of the user's file."""
    include_path: Path | None = None

    def choose(self, names: Sequence[str]) -> tuple[str, ...]:
        """The named domains; of no name those of the user's file, or else all; "all" stands for all.

        Raises:
            ValueError: A name is unknown.
        """
        if "all" in names or not (names or self.own):
            return tuple(self.domains)
        for name in names:
            if name not in self.domains:
                raise ValueError(f"--domains: there is no domain {name!r}{nearest(name, [*self.domains, 'all'])}")
        return tuple(dict.fromkeys(names or self.own))


def read_suite(own: Path | None = None) -> Suite:
    """The shipped benchmarks, with those of the user's file added or put in their place.

    Raises:
        ValueError: The file is not YAML, has mistakes (all are named), or names a folder that is not there.
    """
    domains = {domain: dict(benchmarks) for domain, benchmarks in _read(SHIPPED).domains.items()}
    if own is None:
        return Suite(domains)
    given = _read(own)
    for domain, benchmarks in given.domains.items():
        merged = domains.get(domain, {}) | benchmarks
        domains[domain] = {name: benchmark for name, benchmark in merged.items() if benchmark is not None}
    folder = None
    if given.include_path is not None:
        folder = (own.parent / given.include_path).resolve()
        if not folder.is_dir():
            raise ValueError(f"{own}: include_path: there is no folder {folder}")
    return Suite(domains, tuple(given.domains), folder)


def _read(file: Path) -> TaskFile:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold keys: domains, and include_path for task files of your own")
    try:
        return TaskFile.model_validate(content)
    except ValidationError as error:
        raise ValueError("\n".join(readable(error, prefix=str(file)))) from error
