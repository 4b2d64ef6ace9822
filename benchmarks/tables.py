"""Writes the tables of what the laboratory ran: python benchmarks/tables.py --output FOLDER

Reads the files that `results.py` left in the folder and writes `tables.md` into it: per base model what is known of it,
losses and accuracy by run and domain, differences from `uniform`, and for each target of an expansion its gain and the
others' degradation. A cell is a mean over seeds; brackets are 95 % t intervals over seeds, of paired differences or of
ratios to the same seed's run; `*`: the interval leaves 0 out; `**`: also after Holm's correction over the table.
Nothing is trained, and nothing is said of the numbers: RESULTS.md is written by hand.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import plans
from comparisons import NAN, Comparison, average, corrected, interval, paired

Runs = Mapping[str, Mapping[int, Mapping]]
"""Results by name and seed."""


def load(folder: Path) -> tuple[dict, dict[str, dict[int, dict]]]:
    """What is known of a base model, and its runs as they are planned now."""
    facts, runs = json.loads((folder / "base.json").read_text()), {}
    planned = {name: block for part in plans.PARTS for name, block in plans.runs(part, facts["name"]).items()}
    for file in sorted(folder.glob("runs/*/*.json")):
        run = json.loads(file.read_text())
        if planned.get(run["name"]) == run["asked"]:
            for key in ("losses", "accuracy"):  # null is what did not stay a number
                run[key] = {domain: NAN if value is None else value for domain, value in run[key].items()}
            runs.setdefault(run["name"], {})[run["seed"]] = run
    return facts, {name: runs[name] for name in planned if name in runs}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 4, factor: float = 1) -> str:
    """`-` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"


def ranged(comparison: Comparison, digits: int = 4, factor: float = 1, sign: str = "") -> str:
    """`mean [low, high] marks`; `sign` is `+` for differences, which alone have marks."""
    if math.isnan(comparison.mean):
        return "-"
    mean, low, high = (f"{factor * v:{sign}.{digits}f}" for v in (comparison.mean, comparison.low, comparison.high))
    bounds = "" if math.isnan(comparison.low) else f" [{low}, {high}]"
    return f"{mean}{bounds} {comparison.mark if sign else ''}".rstrip()


def base_table(facts: Mapping) -> str:
    """What is known of a base model, by domain."""
    rows = [
        ("true share of documents", facts["mixture"], 3, 1),
        ("detected", facts["detected"], 3, 1),
        ("reference loss (probe rows)", facts["references"], 4, 1),
        ("loss before (test rows)", facts["losses"], 4, 1),
        ("accuracy before (%)", facts["accuracy"], 1, 100),
        ("training rows", facts["rows"], 0, 1),
    ]
    cells = [[t, *(number((by or {}).get(d), *how) for d in facts["losses"])] for t, by, *how in rows]
    return markdown(["", *facts["losses"]], cells)


def outcome_table(facts: Mapping, runs: Runs, key: str, digits: int, factor: float) -> str:
    """Losses or accuracy by run and domain."""
    rows = []
    for name, by_seed in {"before": {0: facts}, **runs}.items():
        means = [average(run[key][domain] for run in by_seed.values()) for domain in facts["losses"]]
        rows.append([name, str(len(by_seed)), *(number(value, digits, factor) for value in (*means, average(means)))])
    return markdown([key, "n", *facts["losses"], "mean"], rows)


def difference_table(facts: Mapping, runs: Runs) -> str:
    """Mean loss and accuracy minus those of `uniform`, all domains alike and weighted as in the pre-training."""
    kinds = {"loss": ("losses", None, 4, 1), "accuracy (points)": ("accuracy", None, 1, 100)}
    if facts["mixture"]:
        kinds["loss, own mixture"] = ("losses", facts["mixture"], 4, 1)
        kinds["accuracy, own mixture (points)"] = ("accuracy", facts["mixture"], 1, 100)
    columns = []
    for key, weights, digits, factor in kinds.values():
        means = {name: {seed: mean_of(run[key], weights) for seed, run in of.items()} for name, of in runs.items()}
        uniform = means.pop("uniform")
        compared = corrected({name: paired(values, uniform) for name, values in means.items()})
        columns.append({name: ranged(one, digits, factor, "+") for name, one in compared.items()})
    rows = [[name, str(len(runs[name])), *(column[name] for column in columns)] for name in runs if name != "uniform"]
    return markdown(["minus uniform", "n", *kinds], rows)


def mean_of(values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """The mean over domains, each with the same weight or with its own."""
    weights = weights or dict.fromkeys(values, 1.0)
    return sum(weights[domain] * value for domain, value in values.items()) / sum(weights[domain] for domain in values)


def gain(before: Mapping[str, float], after: Mapping[str, float], target: str) -> float:
    """Relative fall of the target's loss."""
    return (before[target] - after[target]) / before[target]


def degradation(before: Mapping[str, float], after: Mapping[str, float], target: str) -> float:
    """Mean relative rise of the others' losses; one that fell counts as 0."""
    return average(max((after[domain] - loss) / loss, 0.0) for domain, loss in before.items() if domain != target)


def frontier_degradation(points: Sequence[tuple[float, float]], at: float) -> float:
    """Least degradation that constant shares pay for a gain, interpolated between their (gain, degradation) points.

    Points that another one beats in both do not count. Where the frontier is convex, a straight line lies above it,
    which favours the rule that is compared; beyond the largest gain it stays where it is, which favours the shares;
    below the smallest gain, or with fewer than two points, NaN.
    """
    points = [point for point in points if not math.isnan(sum(point))]
    if len(points) < 2 or not at >= min(points)[0]:
        return NAN
    best = []
    for gained, degraded in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or degraded < best[-1][1]:
            best.append((gained, degraded))
    return float(np.interp(at, *zip(*best[::-1], strict=True)))


def expansion_table(facts: Mapping, runs: Runs, target: str) -> str:
    """Of each run that raised the target, in %: rows drawn of it, gain, degradation, both against `specific`, beyond.

    `kept` is the share of the gain of `specific`, `less` the share of its degradation that was avoided; `beyond` is the
    degradation minus that of constant shares at the same gain, negative is better. All are per seed.
    """

    def measured(measure: Callable[..., float]) -> dict[str, dict[int, float]]:
        before = facts["losses"]
        return {name: {s: measure(before, run["losses"], target) for s, run in of.items()} for name, of in runs.items()}

    gained, degraded = measured(gain), measured(degradation)
    specific = f"{target}: specific"
    shares = [name for name in runs if name in ("uniform", specific) or name.startswith(f"{target}: share ")]

    def ratio(of: Mapping[str, Mapping[int, float]], name: str) -> dict[int, float]:
        base = of.get(specific, {})
        return {seed: value / base[seed] for seed, value in of[name].items() if base.get(seed, 0) > 0}

    def beyond(name: str) -> list[float]:
        points = {s: [(gained[n][s], degraded[n][s]) for n in shares if s in runs[n]] for s in runs[name]}
        return [degraded[name][s] - frontier_degradation(points[s], gained[name][s]) for s in runs[name]]

    far = corrected({name: interval(beyond(name)) for name in runs if name not in shares})
    rows = []
    for name, by_seed in runs.items():
        drawn = average(run["drawn"][target] for run in by_seed.values())
        cells = [number(value, 2, 100) for value in (average(of[name].values()) for of in (gained, degraded))]
        kept = interval(ratio(gained, name).values())
        less = interval(1 - value for value in ratio(degraded, name).values())
        cells += [ranged(kept, 1, 100), ranged(less, 1, 100), ranged(far[name], 2, 100, "+") if name in far else ""]
        rows.append([name, str(len(by_seed)), number(drawn, 1, 100), *cells])
    return markdown(["all in %", "n", "rows drawn", "gain", "degradation", "kept", "less", "beyond (points)"], rows)


def tables_of(folder: Path) -> str:
    """All tables of a base model."""
    facts, runs = load(folder)
    targets: dict[str, dict] = {}
    for name, by_seed in runs.items():
        expansion = next(iter(by_seed.values()))["asked"].get("expansion")
        targets.setdefault(expansion and expansion["domain"], {})[name] = by_seed
    mixed = targets.pop(None, {})
    parts = [f"## {facts['name']}", base_table(facts)]
    parts += [outcome_table(facts, runs, "losses", 4, 1), outcome_table(facts, runs, "accuracy", 1, 100)]
    if "uniform" in mixed:
        parts.append(difference_table(facts, mixed))
        uniform = {"uniform": mixed["uniform"]}
        parts += [f"Target {t}:\n\n{expansion_table(facts, uniform | of, t)}" for t, of in targets.items()]
    return "\n\n".join(parts)


def write_tables(folder: Path) -> Path:
    """Write the tables of a folder of results; returns their file."""
    bases = sorted(file.parent for file in folder.glob("*/base.json"))
    path = folder / "tables.md"
    path.write_text("\n\n".join(map(tables_of, bases)) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of results")
    print(write_tables(parser.parse_args().output))


if __name__ == "__main__":
    main()
