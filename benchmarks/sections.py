"""The sections of the page: tables of the results, and sentences that follow from the numbers in them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from comparisons import Comparison, average, corrected, deviation, interval, paired, said
from outcomes import (
    NEARLY_ALL,
    PUBLISHED_LESS,
    SENSITIVITY,
    Base,
    Measure,
    against,
    by_seed,
    constant_shares,
    dynamic_rules,
    mean_accuracy,
    mean_loss,
    measures,
    meets,
    neighbours,
    total_variation,
    weighted_accuracy,
    weighted_loss,
)
from plots import short

DEFAULT = "versatune from uniform"  # what sensitivity and ablations change one thing of
# (ours, against, relative change of the average score in the paper's tables, %)
PUBLISHED = (("versatune", "constant", 11.2), ("versatune", "uniform", 35.21), ("inverse", "uniform", -7.8))
PAIRS = (*((ours, other) for ours, other, _ in PUBLISHED), (DEFAULT, "uniform"))
# (title, measure, factor, digits, whether lower is better)
YARDSTICKS = (
    ("mean loss", mean_loss, 1, 4, True),
    ("loss by own mixture", weighted_loss, 1, 4, True),
    ("mean accuracy", mean_accuracy, 100, 1, False),
    ("accuracy by own mixture", weighted_accuracy, 100, 1, False),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 4, factor: float = 1) -> str:
    """`-` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"


def spread(values: Sequence[float], digits: int = 4, factor: float = 1) -> str:
    """Mean (standard deviation), `-` if one of the values is not known."""
    return f"{number(average(values), digits, factor)} ({number(deviation(values), digits, factor)})"


def ranged(c: Comparison, digits: int = 4, factor: float = 1, sign: str = "", n: int | None = None) -> str:
    """`mean [low, high] marks`, with the number of pairs where it is not `n`; `sign` is `+` for differences."""
    if math.isnan(c.mean):
        return "-"
    mean, low, high = (f"{factor * v:{sign}.{digits}f}" for v in (c.mean, c.low, c.high))
    bounds = "" if math.isnan(c.low) else f" [{low}, {high}]"
    few = f" (n = {c.n})" if n is not None and c.n != n else ""
    return f"{mean}{bounds}{few}" + (f" {c.mark}" if sign and c.mark else "")


# --- machine and bases -------------------------------------------------------------------------------------------


def machine(sessions: Sequence[Mapping], bases: Sequence[Base]) -> str:
    """What ran where and for how long, and what is known about the base models."""
    lines = commands(sessions) or ["- No record of the commands was found."]
    trained = [run["seconds"] for base in bases for runs in base.runs.values() for run in runs.values()]
    if trained:
        lines.append(f"- {len(trained)} runs, {sum(trained) / 3600:.1f} h of training, {average(trained):.0f} s a run.")
    return "\n".join([*lines, *("\n" + base_facts(base) for base in bases)])


def commands(sessions: Sequence[Mapping]) -> list[str]:
    """A line with the facts that all sessions share, and one per session; folders by their last name."""
    facts = [
        {key: value for key, value in session.items() if key not in ("command", "began", "wall_seconds")}
        for session in sessions
    ]
    shared = {key: value for key, value in (facts or [{}])[0].items() if all(f.get(key) == value for f in facts)}
    lines = [f"- {listed(f'{key} {value}' for key, value in shared.items())}"] if shared else []
    for session, own in zip(sessions, facts, strict=True):
        different = "".join(f"; {key} {value}" for key, value in own.items() if key not in shared)
        command = re.sub(r"(?<![^\s=])/\S*/(?=[^\s/]+)", "", session["command"])
        lines.append(f"- {session['began']}: `{command}` ({session['wall_seconds'] / 3600:.2f} h{different})")
    return lines


def described(settings: Mapping, under: str = "") -> Iterator[str]:
    """`key value` of every setting, those of a stage after its name; a folder by its last name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from described(value, f"{under}{key} ")
        elif value is not None:
            shown = PurePath(value).name if key == "model" else f"{value:g}" if type(value) in (int, float) else value
            yield f"{under}{key} {shown}"


def base_facts(base: Base) -> str:
    """One base model: mixture, detection, references, rows, losses before fine-tuning."""
    facts, seconds = base.facts, base.facts["seconds"]
    words = [f"**{base.name}**, {facts['parameters'] / 1e6:.1f} M parameters, seeds {listed(base.seeds) or 'none'}."]
    if base.weights:
        distance = total_variation(base.weights, facts["detected"])
        words.append(f"Detected and true mixture are {distance:.3f} apart (total variation).")
    words.append("Seconds: " + ", ".join(f"{key} {value:.0f}" for key, value in seconds.items()) + ".")
    settings = facts["settings"]
    if {"prompt_tokens", "output_tokens"} <= settings.keys():
        prompt, output = settings["prompt_tokens"], settings["output_tokens"]
        words.append(f"Rows are cut to {prompt + output} tokens ({prompt} of the prompt, {output} of the output).")
    words.append("A seed changes only the order of the training rows.")
    words += [f"Settings: {listed(described(settings))}."] if settings else []
    if base.left_out:
        names = listed(f"`{name}`" for name in sorted(set(base.left_out)))
        words.append(f"{len(base.left_out)} run files left out, not planned (so) any more: {names}.")
    rows = [
        ("true share of documents", "mixture", 3),
        ("detected", "detected", 3),
        ("reference loss (probe rows)", "references", 4),
        ("loss before (test rows)", "losses", 4),
        ("accuracy before (%)", "accuracy", 1),
        ("questions", "num_questions", 0),
        ("training rows", "rows", 0),
        ("test rows", "num_test_rows", 0),
    ]
    cells = [
        [title, *(number((facts.get(key) or {}).get(d), digits, 100 if key == "accuracy" else 1) for d in base.domains)]
        for title, key, digits in rows
    ]
    return " ".join(words) + "\n\n" + table(["", *base.domains], cells)


# --- fostering ---------------------------------------------------------------------------------------------------


def fostering(bases: Sequence[Base]) -> str:
    """Losses and accuracy by strategy, differences from uniform under two objectives, the paper's comparisons."""
    parts = [published(bases)] + [fostering_of(base) for base in bases]
    return "\n\n".join(part for part in parts if part)


def fostering_of(base: Base) -> str:
    """One base: what differs from uniform, in words and numbers, then every domain."""
    names = base.of_part("fostering")
    if "uniform" not in names:
        return f"{base.name}: `uniform` has not run yet, so nothing can be compared with it."
    wanted = [yardstick for yardstick in YARDSTICKS if base.weights or "own mixture" not in yardstick[0]]
    compared = {title: against(base, names, "uniform", measure) for title, measure, *_ in wanted}
    words = [f"- {title}: {said(compared[title], lower, 'uniform')}" for title, *_, lower in wanted]
    rows = [
        [name, str(len(base.runs[name]))]
        + [
            ranged(compared[title][name], digits, factor, "+", len(base.runs[name]))
            for title, _, factor, digits, _ in wanted
        ]
        for name in names
        if name != "uniform"
    ]
    header = ["minus uniform", "n", *(f"{title}{' (points)' if f > 1 else ''}" for title, _, f, *_ in wanted)]
    parts = [f"**{base.name}**", "\n".join(words), table(header, rows)]
    return "\n\n".join(
        [*parts, folded("every domain", *(by_domain(base, names, key) for key in ("losses", "accuracy")))]
    )


def folded(title: str, *parts: str) -> str:
    """Parts that a reader opens with a click."""
    return "\n\n".join([f"<details><summary>{title}</summary>", *parts, "</details>"])


def by_domain(base: Base, names: Sequence[str], key: str) -> str:
    """Means over seeds of the losses (nats), or of the accuracy (%), per domain, with the means over domains."""
    factor, digits, title = (1, 4, "held-out loss (nats)") if key == "losses" else (100, 1, "accuracy (%)")
    means = [mean_loss, weighted_loss] if key == "losses" else [mean_accuracy, weighted_accuracy]
    means = means if base.weights else means[:1]
    before = {"seed": 0, **base.facts}
    rows = []
    for name, runs in [("before fine-tuning", [before]), *((name, base.runs[name].values()) for name in names)]:
        domains = [number(average(run[key].get(d, math.nan) for run in runs), digits, factor) for d in base.domains]
        spreads = [spread([measure(base, run) for run in runs], digits, factor) for measure in means]
        num_runs, seconds = "", ""
        if name != "before fine-tuning":
            num_runs, seconds = str(len(runs)), number(average(run["seconds"] for run in runs), 0)
        rows.append([name, num_runs, *domains, *spreads, seconds])
    titles = [*["mean (sd)", "by own mixture (sd)"][: len(means)], "seconds a run"]
    return table([f"{base.name}: {title}", "n", *base.domains, *titles], rows)


def published(bases: Sequence[Base]) -> str:
    """The comparisons that the paper makes, and one of ours, beside the paper's figures."""
    figures = {(ours, other): f"{figure:+.2f} %" for ours, other, figure in PUBLISHED}
    rows = []
    for ours, other in PAIRS:
        for base in bases:
            if ours not in base.runs or other not in base.runs:
                continue
            loss, points = (pair(base, ours, other, measure) for measure in (mean_loss, mean_accuracy))
            cells = [
                ranged(loss, 4, 1, "+"),
                ranged(points, 1, 100, "+"),
                ranged(relative(base, ours, other), 1, 100, "+"),
            ]
            rows.append([f"{ours} - {other}", base.name, str(loss.n), *cells, figures.get((ours, other), "-")])
    header = ["difference", "base", "n", "mean loss", "accuracy (points)", "accuracy (relative, %)", "paper's score"]
    return table(header, rows) if rows else ""


def pair(base: Base, ours: str, other: str, measure: Measure) -> Comparison:
    """The paired differences of two runs: a comparison planned in advance, so not corrected."""
    return paired(by_seed(base, ours, measure), by_seed(base, other, measure))


def relative(base: Base, ours: str, other: str) -> Comparison:
    """Mean accuracy relative to the other's, minus 1, per seed."""
    mine, theirs = by_seed(base, ours, mean_accuracy), by_seed(base, other, mean_accuracy)
    return interval(mine[seed] / theirs[seed] - 1 for seed in sorted(mine.keys() & theirs.keys()) if theirs[seed])


# --- expansion ---------------------------------------------------------------------------------------------------


def expansion(bases: Sequence[Base], target: str) -> str:
    """Tables and words of all bases that expanded the target."""
    return "\n\n".join(expansion_of(base, target) for base in bases if target in base.targets)


def expansion_of(base: Base, target: str) -> str:
    """One base and target: every rule, whether it meets the paper's figure, and where it stands to the frontier."""
    of, rules, rows = measures(target), dynamic_rules(base, target), []
    names = [*reversed(constant_shares(base, target)), *rules]
    found = beyond(base, target)
    for name in names:
        values = {key: list(by_seed(base, name, measure).values()) for key, measure in of.items()}
        n, kept, less = len(base.runs[name]), interval(values["kept"]), interval(values["less"])
        distance = [ranged(found[name], 2, 100, "+", n), between(base, target, name)] if name in found else ["", ""]
        percent = [spread(values[key], 2, 100) for key in ("gain", "degradation", "change")]
        cells = [percent[0], ranged(kept, 1, 100, n=n), percent[1], ranged(less, 1, 100, n=n), percent[2]]
        share = number(average(values["share"]), 1, 100)
        rows.append([short(name), str(n), share, *cells, *distance, passed(base, name, values["passed"])])
        rows[-1].append("yes" if meets(kept, less) else "no")
    header = [
        "rule (all in %)",
        "n",
        "rows drawn",
        "gain (sd)",
        "kept",
        "degradation (sd)",
        "less",
        "others' mean change (sd)",
    ]
    header += ["beyond (points)", "between", "test passed (updates)"]
    header += [f"> {100 * PUBLISHED_LESS:.2f} less at >= {100 * NEARLY_ALL:.0f} kept"]
    return "\n\n".join([f"**{base.name}, target {target}**", *frontier_words(base, target), table(header, rows)])


def between(base: Base, target: str, name: str) -> str:
    """The constant shares that a rule's gain lies between; one of them where the frontier is taken as flat."""
    shares = [short(share).removesuffix(" constant") for share in neighbours(base, target, name)]
    shares = ["100 %" if share == "specific" else share for share in shares]
    return " and ".join(shares) + (", flat" if len(shares) == 1 else "") if shares else "-"


def passed(base: Base, name: str, counts: Sequence[float]) -> str:
    """`passes of tests`, means over the seeds; `-` where the rule has no test."""
    tests = average(len(run["tests"]) for run in base.runs[name].values())
    return "-" if math.isnan(average(counts)) else f"{average(counts):.1f} of {tests:g}"


def beyond(base: Base, target: str) -> dict[str, Comparison]:
    """Of each dynamic rule, its degradation minus that of constant shares at equal gain, corrected over the rules."""
    measure = measures(target)["beyond"]
    rules = dynamic_rules(base, target)
    return corrected({name: interval(by_seed(base, name, measure).values()) for name in rules})


def meeting(base: Base, target: str) -> list[str]:
    """The rules with more than 38.77 % less degradation at 95 % of the gain or more, on average over the seeds."""
    of = measures(target)
    means = {
        name: [interval(by_seed(base, name, of[key]).values()) for key in ("kept", "less")]
        for name in (*constant_shares(base, target), *dynamic_rules(base, target))
    }
    return [name for name, (kept, less) in means.items() if meets(kept, less)]


def frontier_words(base: Base, target: str) -> list[str]:
    """Who meets the paper's figure, and who is above the frontier."""
    met = [short(name) for name in meeting(base, target)]
    goal = f"More than {100 * PUBLISHED_LESS:.2f} % less degradation with at least {100 * NEARLY_ALL:.0f} % of the gain"
    distances = {short(name): distance for name, distance in beyond(base, target).items()}
    off = [name for name, distance in distances.items() if distance.n == 0]
    on = {name: distance for name, distance in distances.items() if distance.n}
    words = [f"- {goal}: {listed(met) or 'none'}."]
    if on:
        words.append(f"- Degradation at equal gain: {said(on, True, 'constant shares')}")
    if off:
        words.append(f"- Gained less than every constant share, so without a place on the frontier: {listed(off)}.")
    return ["\n".join(words)]


# --- sensitivity and ablations -----------------------------------------------------------------------------------


def sensitivity(bases: Sequence[Base]) -> str:
    """A table per key: the values tried, and the differences from the default."""
    found = {SENSITIVITY.fullmatch(name)["key"]: None for base in bases for name in base.of_part("sensitivity")}
    return "\n\n".join(sensitivity_of(bases, key) for key in found)


def sensitivity_of(bases: Sequence[Base], key: str) -> str:
    """One key: mean loss, or gain kept and degradation avoided where the key is one of expansion."""
    rows, words, titles, targets = [], [], [], []
    for base in bases:
        names = [name for name in base.of_part("sensitivity") if SENSITIVITY.fullmatch(name)["key"] == key]
        if not names:
            continue
        target = target_of(base, key)
        default, where = (f"{target}: versatune", f"{base.name}, {target}") if target else (DEFAULT, base.name)
        if default not in base.runs:
            words.append(f"- {where}: `{default}` has not run, so nothing is compared.")
            continue
        of = measures(target) if target else {}
        wanted = [(f"{title} (%)", of[title], 100, 1, False) for title in ("kept", "less")] if of else YARDSTICKS[:1]
        titles, targets = [title for title, *_ in wanted], [*targets, target]
        compared = [against(base, names, default, measure) for _, measure, *_ in wanted]
        for name in sorted([*names, default], key=lambda name: value_of(base, name, key)):
            cells = [spread(list(by_seed(base, name, measure).values()), d, f) for _, measure, f, d, _ in wanted]
            cells += [
                "default" if name == default else ranged(c[name], d, f, "+", len(base.runs[name]))
                for c, (_, _, f, d, _) in zip(compared, wanted, strict=True)
            ]
            rows.append([f"{value_of(base, name, key):g}", where, str(len(base.runs[name])), *cells])
        for c, (title, *_, lower) in zip(compared, wanted, strict=True):
            words.append(f"- {where}, {title}: {said(c, lower, 'the default')}")
    header = [key, "base", "n", *(f"{title}, mean (sd)" for title in titles), *(f"{t} - default" for t in titles)]
    about = f"**{key}**" + (" (one domain raised above the others)" if any(targets) else "")
    return "\n\n".join([about, "\n".join(words), *([table(header, rows)] if rows else [])])


def target_of(base: Base, key: str) -> str | None:
    """The domain that runs of this key expand, None where they expand none."""
    names = [name for name in base.of_part("sensitivity") if SENSITIVITY.fullmatch(name)["key"] == key]
    blocks = [run["block"] for name in names for run in base.runs[name].values()]
    return next((block["expansion"]["domain"] for block in blocks if block.get("expansion")), None)


def value_of(base: Base, name: str, key: str) -> float:
    """The value in the name, or that of the default run: what its block says, else the product's own."""
    if match := SENSITIVITY.fullmatch(name):
        return float(match["value"])
    from versatune_plugin.config.block import VersaTuneConfig

    config = VersaTuneConfig(**next(iter(base.runs[name].values()))["block"])
    places = {
        "interval": lambda: config.update_interval,
        "probe": lambda: config.probe.rows_per_domain,
        "sigma": lambda: config.sigma,
    }
    return float(places[key]() if key in places else getattr(config.expansion, key))


def ablations(bases: Sequence[Base]) -> str:
    """Changes of the default, against the default and against uniform; negative results stay."""
    header = [
        "change",
        "n",
        *(f"{title} - {other}" for other in ("default", "uniform") for title in ("loss", "accuracy")),
    ]
    parts = []
    for base in bases:
        names = base.of_part("ablations")
        if not names or DEFAULT not in base.runs:
            continue
        chosen = [(other, YARDSTICKS[index]) for other in (DEFAULT, "uniform") for index in (0, 2)]
        compared = [against(base, names, other, measure) for other, (_, measure, *_) in chosen]
        rows = [
            [name, str(len(base.runs[name]))]
            + [
                ranged(c[name], digits, factor, "+", len(base.runs[name]))
                for c, (_, (_, _, factor, digits, _)) in zip(compared, chosen, strict=True)
            ]
            for name in names
        ]
        words = [
            f"- {title}: {said(c, lower, other)}"
            for c, (other, (title, *_, lower)) in zip(compared, chosen, strict=True)
        ]
        parts.append(f"**{base.name}** (default: `{DEFAULT}`)\n\n" + "\n".join(words) + "\n\n" + table(header, rows))
    return "\n\n".join(parts)


# --- peers -------------------------------------------------------------------------------------------------------


def peers(document: Mapping) -> str:
    """Other programs that drove the same training, and what broke."""
    domains = list(dict.fromkeys(domain for arm in document["arms"] for domain in arm.get("losses") or {}))
    rows, notes = [], []
    for arm in document["arms"]:
        losses = [number((arm.get("losses") or {}).get(domain)) for domain in domains]
        seconds, steps = number(arm.get("seconds"), 1), "-" if arm.get("steps") is None else str(arm["steps"])
        rows.append([arm["name"], seconds, steps, number(arm.get("mean_loss")), *losses])
        notes += [f"- {arm['name']}: {note}" for note in arm.get("notes") or []]
    made = table(["program", "seconds", "steps", "mean loss", *domains], rows)
    return made + ("\n\n" + "\n".join(notes) if notes else "")


def listed(names: Sequence) -> str:
    """Separated by commas."""
    return ", ".join(map(str, names))
