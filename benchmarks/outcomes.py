"""The result files of the laboratory, and what is measured on one run: losses, accuracy, gain, degradation.

A measure is a function of a base model and one of its runs that gives a number, NaN where it is not known, so that
every table is made the same way: a measure, by strategy and seed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plans
from comparisons import NAN, Comparison, average, corrected, paired

PUBLISHED_LESS = 0.3877  # less degradation than 100 % specific fine-tuning, arXiv 2411.11266
NEARLY_ALL = 0.95  # of the target gain: our reading of the paper's "nearly the same"
FOSTERING = (
    "uniform",
    "inverse",
    "constant",
    "proportional",
    "versatune",
    "versatune from uniform",
    "odm",
    "dynamic_batch_loading",
    "sequential",
    "mixed_sequential",
    "dmt",
)
SENSITIVITY = re.compile(r"(?P<key>[a-z_ ]+) (?P<value>[0-9.]+)")


@dataclass(frozen=True)
class Base:
    """A base model: its `base.json`, its finished runs by name and seed, and the names of files that do not count."""

    facts: Mapping
    runs: Mapping[str, Mapping[int, Mapping]]
    left_out: Sequence[str] = ()

    @property
    def name(self) -> str:
        """As in the files."""
        return self.facts["name"]

    @property
    def domains(self) -> list[str]:
        """In the order of the files."""
        return list(self.facts["losses"])

    @property
    def known(self) -> bool:
        """A model of the laboratory, whose pre-training mixture is known."""
        return known(self.name)

    @property
    def seeds(self) -> list[int]:
        """Of all its runs, ascending."""
        return sorted({seed for runs in self.runs.values() for seed in runs})

    @property
    def weights(self) -> dict[str, float] | None:
        """The known mixture of the pre-training documents, sum 1; None where nobody knows it."""
        mixture = self.facts["mixture"]
        return None if mixture is None or None in mixture.values() else mixture

    def of_part(self, part: str) -> list[str]:
        """The names of its runs of one part, the known strategies in their usual order, others by name."""
        names = [name for name in sorted(self.runs, key=_natural) if part_of(name) == part]
        return sorted(names, key=FOSTERING.index) if part == "fostering" else names

    @property
    def targets(self) -> list[str]:
        """The domains that expansions were run for."""
        return list(dict.fromkeys(name.split(": ")[0] for name in self.of_part("expansion")))


Measure = Callable[[Base, Mapping], float]


def known(name: str) -> bool:
    """Whether a base of this name is one of the laboratory's."""
    return name.startswith("tiny-")


def _natural(name: str) -> list:
    """Sorts numbers inside names by size."""
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in re.split(r"(\d+(?:\.\d+)?)", name)]


def part_of(name: str) -> str:
    """The part that a run belongs to, by its name."""
    if ": " in name:
        return "expansion"
    if name in FOSTERING:
        return "fostering"
    return "sensitivity" if SENSITIVITY.fullmatch(name) else "ablations"


def load(folder: Path) -> tuple[list[dict], list[Base], dict | None]:
    """The commands that ran and on what machine, the bases (known ones first), and the peers' results if there are."""
    sessions, peers = folder / "machine.jsonl", folder / "peers.json"
    lines = sessions.read_text(encoding="utf-8").splitlines() if sessions.exists() else []
    bases = [_load_base(file) for file in sorted(folder.glob("*/base.json"))]
    bases.sort(key=lambda base: (not base.known, base.name))
    return [json.loads(line) for line in lines], bases, _json(peers) if peers.exists() else None


def _load_base(file: Path) -> Base:
    runs: dict[str, dict[int, dict]] = {}
    facts, left_out = _json(file), []
    planned = _planned(facts["name"])
    for path in sorted(file.parent.glob("runs/*/*.json")):
        run = _json(path)
        if run["name"] not in planned or run["asked"] != planned[run["name"]]:
            left_out.append(run["name"])
            continue
        for measured in (run, *run["checkpoints"]):
            for key in measured.keys() & {"losses", "accuracy"}:  # null is what did not stay a number
                measured[key] = {domain: NAN if v is None else v for domain, v in measured[key].items()}
        runs.setdefault(run["name"], {})[run["seed"]] = run
    return Base(facts, runs, left_out)


def _planned(name: str) -> dict[str, dict]:
    """The blocks of a base's runs by name: of every part, or of `real` where it is a real model."""
    parts = [part for part in plans.PARTS if (part == "real") != known(name)]
    return {run: block for part in parts for run, block in plans.runs(part, name).items()}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# --- measures ----------------------------------------------------------------------------------------------------


def mean_of(values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """The mean over domains, each with the same weight or with its own; NaN of nothing, and if one is NaN."""
    if not values:
        return NAN
    weights = weights or dict.fromkeys(values, 1.0)
    return sum(weights[domain] * value for domain, value in values.items()) / sum(weights[domain] for domain in values)


def mean_loss(_: Base, run: Mapping) -> float:
    """Nats per target token, the mean of the domains."""
    return mean_of(run["losses"])


def mean_accuracy(_: Base, run: Mapping) -> float:
    """Share of questions answered right, the mean of the domains."""
    return mean_of(run["accuracy"])


def weighted_loss(base: Base, run: Mapping) -> float:
    """As `mean_loss`, each domain weighing what it weighed in the pre-training of the base."""
    return mean_of(run["losses"], base.weights) if base.weights else NAN


def weighted_accuracy(base: Base, run: Mapping) -> float:
    """As `mean_accuracy`, each domain weighing what it weighed in the pre-training of the base."""
    return mean_of(run["accuracy"], base.weights) if base.weights else NAN


def by_seed(base: Base, name: str, measure: Measure) -> dict[int, float]:
    """A measure of every run of a name; empty where there is none."""
    return {seed: measure(base, run) for seed, run in base.runs.get(name, {}).items()}


def against(base: Base, names: Sequence[str], other: str, measure: Measure) -> dict[str, Comparison]:
    """Each name's paired differences from `other`, Holm-corrected over the names; `other` itself left out."""
    theirs = by_seed(base, other, measure)
    return corrected({name: paired(by_seed(base, name, measure), theirs) for name in names if name != other})


def total_variation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Half the sum of absolute differences, in [0, 1]."""
    return sum(abs(first[domain] - second[domain]) for domain in first) / 2


# --- expansion ---------------------------------------------------------------------------------------------------


def gain(before: Mapping[str, float], after: Mapping[str, float], target: str) -> float:
    """Relative reduction of the target's loss against before fine-tuning."""
    return (before[target] - after[target]) / before[target]


def changes(before: Mapping[str, float], after: Mapping[str, float], target: str) -> list[float]:
    """Relative change of the loss of every domain but the target, positive where it got worse."""
    return [(after[domain] - loss) / loss for domain, loss in before.items() if domain != target]


def degradation(before: Mapping[str, float], after: Mapping[str, float], target: str) -> float:
    """Mean relative rise of the others' losses; a domain that improved counts as 0."""
    return average(max(change, 0.0) for change in changes(before, after, target))


def measures(target: str) -> dict[str, Measure]:
    """Of one run that expands the target: share drawn, gain, kept, degradation, less, mean change, beyond, passed.

    `kept` and `less` relate gain and degradation to those of `specific` with the same seed, NaN where that gained
    or degraded nothing; `beyond` is the rise above the frontier of constant shares at the same gain, as a share.
    `passed` counts the updates at which the rule's test held, NaN where it has none.
    """

    def measured(function: Callable) -> Measure:
        return lambda base, run: function(base.facts["losses"], run["losses"], target)

    gained, degraded = measured(gain), measured(degradation)

    def related(measure: Measure) -> Measure:
        def ratio(base: Base, run: Mapping) -> float:
            specific = by_seed(base, f"{target}: specific", measure).get(run["seed"], NAN)
            return measure(base, run) / specific if specific > 0 else NAN

        return ratio

    def beyond(base: Base, run: Mapping) -> float:
        points = [
            (gained(base, base.runs[name][run["seed"]]), degraded(base, base.runs[name][run["seed"]]))
            for name in constant_shares(base, target)
            if run["seed"] in base.runs[name]
        ]
        return degraded(base, run) - frontier_degradation(points, gained(base, run))

    kept, of_specific = related(gained), related(degraded)
    return {
        "share": lambda _, run: run["drawn"][target],
        "gain": gained,
        "kept": kept,
        "degradation": degraded,
        "less": lambda base, run: 1 - of_specific(base, run),
        "change": measured(lambda *losses: average(changes(*losses))),
        "beyond": beyond,
        "passed": lambda _, run: sum(left < right for left, right, _ in run["tests"]) if run["tests"] else NAN,
    }


def constant_shares(base: Base, target: str) -> list[str]:
    """The runs that make the frontier: `uniform`, the shares upwards, `specific`; those that exist."""
    shares = [name for name in base.of_part("expansion") if re.fullmatch(rf"{re.escape(target)}: share [0-9.]+", name)]
    return [name for name in ("uniform", *shares, f"{target}: specific") if name in base.runs]


def dynamic_rules(base: Base, target: str) -> list[str]:
    """The expansions of the target that are not constant shares."""
    own = [name for name in base.of_part("expansion") if name.startswith(f"{target}: ")]
    return [name for name in own if name not in constant_shares(base, target)]


def frontier_degradation(points: Sequence[tuple[float, float]], at: float) -> float:
    """Least degradation that constant shares pay for a gain, interpolated between (gain, degradation) points.

    Where it is convex, a straight line between two points lies above it, which favours the rule that is compared.
    Beyond the largest gain the frontier stays where it is, which favours the constant shares; below the smallest of
    all points, or with fewer than two, NaN.
    """
    points = [point for point in points if not math.isnan(sum(point))]
    if len(points) < 2 or not at >= min(points)[0]:
        return NAN
    return float(np.interp(at, *zip(*unbeaten(points), strict=True)))


def unbeaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (gain, degradation) points that no other one beats in both, by gain."""
    best = []
    for gained, degraded in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or degraded < best[-1][1]:
            best.append((gained, degraded))
    return best[::-1]


def neighbours(base: Base, target: str, name: str) -> list[str]:
    """The constant shares of the frontier below and above a run's gain, all by their means over seeds.

    One where the run gains more than all of them; none where it has no place on the frontier.
    """
    of = measures(target)

    def mean(of_name: str, key: str) -> float:
        return average(by_seed(base, of_name, of[key]).values())

    points = {(mean(share, "gain"), mean(share, "degradation")): share for share in constant_shares(base, target)}
    points = {point: share for point, share in points.items() if not math.isnan(sum(point))}
    at = mean(name, "gain")
    if math.isnan(frontier_degradation(list(points), at)):
        return []
    best = unbeaten(list(points))
    above = sum(gained <= at for gained, _ in best)
    return [points[point] for point in best[max(0, above - 1) : above + 1]]


def meets(kept: Comparison, less: Comparison) -> bool:
    """On average over the seeds: more than 38.77 % less degradation at no less than 95 % of the target gain."""
    return kept.mean >= NEARLY_ALL and less.mean > PUBLISHED_LESS


def curve(base: Base, name: str, value: Callable[[Mapping[str, float]], float]) -> list[tuple[int, float]]:
    """(step, mean over seeds) of a value of the losses at every checkpoint that all seeds have, and 0 at step 0."""
    runs = [{point["step"]: value(point["losses"]) for point in run["checkpoints"]} for run in base.runs[name].values()]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    return [(0, 0.0)] + [(step, average(run[step] for run in runs)) for step in steps] if steps else []
