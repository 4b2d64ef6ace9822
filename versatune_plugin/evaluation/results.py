"""evaluation.json while it grows: results by domain and benchmark, their means, and why others are missing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from versatune_plugin.evaluation import harness
from versatune_plugin.evaluation.suite import Suite
from versatune_plugin.files.documents import read_document, write_document

SCHEMA = "versatune/evaluation"


@dataclass
class Evaluation:
    """The content of evaluation.json."""

    file: Path
    model: dict
    step: int | None
    limit: int | None
    chat_template: bool
    version: str
    results: dict[str, dict[str, dict]] = field(default_factory=dict)
    """By domain and benchmark."""
    sizes: dict[str, int] = field(default_factory=dict)
    """By domain: how many benchmarks it has, without those that stand in for another."""
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why, by domain and benchmark."""
    unfit: bool = False
    """Whether the file holds results that do not go with these; it is left alone while there are none of these."""

    def document(self) -> dict:
        """As it is written, without schema and version."""
        every = [task for tasks in self.results.values() for task in tasks.values()]
        return {
            "model": self.model,
            "step": self.step,
            "domains": {domain: _domain(tasks, self.sizes[domain]) for domain, tasks in self.results.items() if tasks},
            "left_out": [
                {"domain": domain, "task": name, "reason": reason} for (domain, name), reason in self.left_out.items()
            ],
            "limit": self.limit,
            "chat_template": self.chat_template,
            "harness": {"name": harness.NAME, "version": self.version},
            "seconds": round(sum(task["seconds"] for task in every), 3),
        }

    def write(self) -> None:
        """Replace the file as a whole, unless that would lose results and give none."""
        if any(self.results.values()):
            self.unfit = False
        if not self.unfit:
            write_document(self.file, SCHEMA, self.document())

    def go_on(self, refresh: bool, say: Callable[[str], None]) -> None:
        """Take over the results in the file, where they go with these.

        Args:
            refresh: Whether results that do not are to be replaced, as soon as there is one of these.
            say: Gets a line that names those.

        Raises:
            ValueError: They are of another model, limit or release of the harness or with another use of the chat
                template, and not to be replaced; or the file is not such a document.
        """
        if not self.file.exists():
            return
        old = read_document(self.file, SCHEMA)
        differing = self._differences(old)
        if not differing:
            self.results = {domain: dict(part["tasks"]) for domain, part in old["domains"].items()}
            self.sizes = {domain: part["of"] for domain, part in old["domains"].items()}
            self.left_out = {(one["domain"], one["task"]): one["reason"] for one in old["left_out"]}
        elif not refresh:
            raise ValueError(
                f"{self.file} holds results that do not go with these ({'; '.join(differing)}): name another folder "
                "with --output, or replace them with --refresh"
            )
        elif names := [f"{domain} / {name}" for domain, part in old["domains"].items() for name in part["tasks"]]:
            self.unfit = True
            why = "; ".join(differing)
            say(f"the first new result replaces all that do not go with it ({why}): {', '.join(names)}")

    def _differences(self, old: dict) -> list[str]:
        new = self.document()
        found = [
            f"{key} {fact} {old[key][fact]}, now {new[key][fact]}"
            for key, fact in (("model", "fingerprint"), ("harness", "version"))
            if old[key][fact] != new[key][fact] or new[key][fact] is None
        ]
        if old["limit"] != self.limit:
            found.append(f"limit {old['limit']}, now {self.limit}")
        if old.get("chat_template") != self.chat_template:
            found.append(f"made {'with' if old.get('chat_template') else 'without'} --chat-template")
        return found

    def adopt(self, suite: Suite, domain: str, say: Callable[[str], None]) -> None:
        """Keep of a domain's results those that are of the benchmarks as the suite defines them now."""
        benchmarks = suite.domains[domain]
        if not benchmarks:
            say(f"{domain}: has no benchmark (null took them away, or none was given)")
        kept = {}
        for name, result in self.results.get(domain, {}).items():
            if name not in benchmarks:
                say(f"{domain} / {name}: is not among the benchmarks any more, so its earlier result is dropped")
            elif result["definition"] != suite.definition(domain, name):
                say(f"{domain} / {name}: its definition has changed, so its earlier result is dropped")
            else:
                kept[name] = result | suite.labels(domain, name)
        self.results[domain] = kept
        self.sizes[domain] = sum(benchmark.instead_of is None for benchmark in benchmarks.values())
        self.left_out = {where: why for where, why in self.left_out.items() if where[0] != domain}

    def has(self, domain: str, name: str) -> bool:
        """Whether a benchmark has a result."""
        return name in self.results.get(domain, {})


def _domain(tasks: dict[str, dict], size: int) -> dict:
    """The mean of a domain's own benchmarks, each counting the same (arXiv 2411.11266, section 5.1); None of none."""
    own = [task for task in tasks.values() if task["stand_in_for"] is None]
    score, stderr = None, None
    if own:
        score, stderr = harness.weighted_mean(
            [task["score"] for task in own], [task["stderr"] for task in own], [1] * len(own)
        )
    ordered = sorted(tasks.items(), key=lambda item: item[1]["stand_in_for"] is not None)
    return {"score": score, "stderr": stderr, "num_benchmarks": len(own), "of": size, "tasks": dict(ordered)}
