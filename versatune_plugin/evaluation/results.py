"""evaluation.json: results by domain and benchmark, their means, and why others are missing."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, NonNegativeInt

from versatune_plugin.evaluation import harness
from versatune_plugin.evaluation.suite import Benchmark
from versatune_plugin.files.documents import Document, Part

Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]  # a mean of ones may round up


class Result(Part):
    """The score of one benchmark, and how it was measured."""

    title: str
    definition: dict[str, Any]
    """See `Benchmark.definition`."""
    metric: str
    """As the harness calls it, with the filter where there is one."""
    score: Share
    """In [0, 1], higher is better."""
    stderr: Share | None
    """None where it is not known."""
    num_fewshot: NonNegativeInt | None
    """Solved examples in a prompt; None where tasks differ."""
    num_samples: NonNegativeInt
    """Rows."""
    harness_tasks: list[str]
    batch_size: str
    dtype: str
    """Of the weights."""
    trust_remote_code: bool
    seconds: float


class DomainResult(Part):
    """The mean over a domain's benchmarks, as far as they have been run."""

    score: Share
    stderr: Share | None
    num_benchmarks: NonNegativeInt
    """Benchmarks with a result."""
    of: NonNegativeInt
    """All benchmarks of the domain."""
    tasks: dict[str, Result]
    """By benchmark."""

    @classmethod
    def mean(cls, tasks: dict[str, Result], of: int) -> Self:
        """Each benchmark counts the same (arXiv 2411.11266, section 5.1); there is at least one."""
        scores, stderrs = [task.score for task in tasks.values()], [task.stderr for task in tasks.values()]
        score, stderr = harness.weighted_mean(scores, stderrs, [1] * len(tasks))
        return cls(score=score, stderr=stderr, num_benchmarks=len(tasks), of=of, tasks=tasks)


class LeftOut(Part):
    """A benchmark without a result."""

    domain: str
    task: str
    reason: str


class EvaluatedModel(Part):
    """What was evaluated; see `Target`."""

    name: str
    fingerprint: str | None
    base_model: str | None


class HarnessRelease(Part):
    """What evaluated it."""

    name: str
    version: str


class Evaluation(Document):
    """The content of evaluation.json; all results are of the same model, limit, prompt format and harness."""

    SCHEMA: ClassVar[str] = "versatune/evaluation"

    model: EvaluatedModel
    step: int | None
    """The optimizer step, of a checkpoint."""
    domains: dict[str, DomainResult] = Field(default_factory=dict)
    """Those with a result."""
    left_out: list[LeftOut] = Field(default_factory=list)
    limit: int | None
    """Rows per task; None: all."""
    chat_template: bool
    harness: HarnessRelease
    seconds: float = 0.0
    """Of all benchmarks together."""

    def differences(self, other: Self) -> list[str]:
        """Why the results of another evaluation do not go with these, in words; empty: they do."""
        facts = {
            "model fingerprint": (other.model.fingerprint, self.model.fingerprint),
            "harness version": (other.harness.version, self.harness.version),
            "limit": (other.limit, self.limit),
            "chat template": (other.chat_template, self.chat_template),
        }
        unknown = {"model fingerprint"} if self.model.fingerprint is None else set()
        return [f"{name} {was}, now {now}" for name, (was, now) in facts.items() if was != now or name in unknown]

    def tasks(self, domain: str) -> dict[str, Result]:
        """The results of a domain, by benchmark."""
        return dict(self.domains[domain].tasks) if domain in self.domains else {}

    def keep(self, domain: str, benchmarks: Mapping[str, Benchmark]) -> list[str]:
        """Keep of a domain the results of its benchmarks as they are defined now; returns the names of the others."""
        tasks = self.tasks(domain)
        kept = {
            name: tasks[name].model_copy(update={"title": benchmark.title or name})
            for name, benchmark in benchmarks.items()
            if name in tasks and tasks[name].definition == benchmark.definition
        }
        self._set(domain, kept, len(benchmarks))
        self.left_out = [one for one in self.left_out if one.domain != domain]
        return [name for name in tasks if name not in kept]

    def add(self, domain: str, name: str, result: Result, of: int) -> None:
        """Put in a benchmark's result.

        Args:
            domain: Its domain.
            name: Of the benchmark.
            result: Takes the place of an earlier one.
            of: How many benchmarks the domain has.
        """
        self._set(domain, self.tasks(domain) | {name: result}, of)
        self._forget(domain, name)

    def leave_out(self, domain: str, name: str, reason: str) -> None:
        """Say why a benchmark has no result."""
        self._forget(domain, name)
        self.left_out.append(LeftOut(domain=domain, task=name, reason=reason))

    def _set(self, domain: str, tasks: dict[str, Result], of: int) -> None:
        if tasks:
            self.domains[domain] = DomainResult.mean(tasks, of)
        else:
            self.domains.pop(domain, None)
        every = [task for one in self.domains.values() for task in one.tasks.values()]
        self.seconds = round(sum(task.seconds for task in every), 3)

    def _forget(self, domain: str, name: str) -> None:
        self.left_out = [one for one in self.left_out if (one.domain, one.task) != (domain, name)]
