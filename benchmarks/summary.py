"""The frank summary on top of the page: sentences chosen by the numbers, none of them written in advance."""

from collections.abc import Mapping, Sequence

from comparisons import UNKNOWN, Comparison, average, corrected, grouped, interval, verdict
from outcomes import (
    NEARLY_ALL,
    PUBLISHED_LESS,
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
    weighted_loss,
)
from plots import short
from sections import DEFAULT, PUBLISHED, beyond, listed, meeting, pair

VERDICTS = {
    "better": "significantly better",
    "worse": "significantly worse",
    "same": "no difference shown",
    "unknown": UNKNOWN,
}


def summary(bases: Sequence[Base]) -> str:
    """What VersaTune buys, what it does not, when plain uniform is better, and which claims of the paper show."""
    bought, not_bought = [], []
    for question in QUESTIONS:
        found, sentence = told(bases, *question)
        (bought if found == {"better"} else not_bought).append(sentence)
    if any(not_bought) and not bought:
        bought = ["nothing compared here is significantly better on every base."]
    groups = {
        "What VersaTune buys (on every base)": bought,
        "What it does not buy, or not on every base": not_bought,
        "When plain uniform is better": [uniform_sentence(bases)],
        "Which strategy wins": [
            lowest(bases, mean_loss, f"Lowest mean loss {EQUAL}"),
            lowest(bases, weighted_loss, f"The same {OWN}"),
        ],
        "One domain raised above the others": expansion_sentences(bases),
        "The paper's claims": [claims(bases)],
    }
    parts = [(title, [sentence for sentence in sentences if sentence]) for title, sentences in groups.items()]
    return "\n\n".join(
        f"**{title}**\n\n" + "\n".join(f"- {sentence[0].upper()}{sentence[1:]}" for sentence in sentences)
        for title, sentences in parts
        if sentences
    )


# --- fostering ---------------------------------------------------------------------------------------------------

EQUAL, OWN = "with all domains weighted equally", "with domains weighted as in the base's pre-training"
FROM_UNIFORM = "VersaTune from a uniform start against plain uniform"
FROM_DETECTED = "VersaTune from the detected mixture against uniform"
CONSTANT = "dynamic against constant proportions, both from the detected mixture"
# (what is compared, ours, other, measure)
QUESTIONS = (
    (f"{FROM_UNIFORM}, loss {EQUAL}", DEFAULT, "uniform", mean_loss),
    (f"{FROM_UNIFORM}, accuracy {EQUAL}", DEFAULT, "uniform", mean_accuracy),
    (f"{FROM_DETECTED}, loss {EQUAL}", "versatune", "uniform", mean_loss),
    (f"{FROM_DETECTED}, loss {OWN}", "versatune", "uniform", weighted_loss),
    (f"{CONSTANT}, loss {EQUAL}", "versatune", "constant", mean_loss),
    (f"{CONSTANT}, accuracy {EQUAL}", "versatune", "constant", mean_accuracy),
)


def compared(bases: Sequence[Base], ours: str, other: str, measure: Measure) -> dict[str, Comparison]:
    """By base, where both have run and the measure is known."""
    found = {base.name: pair(base, ours, other, measure) for base in bases}
    return {name: comparison for name, comparison in found.items() if comparison.n}


def told(bases: Sequence[Base], about: str, ours: str, other: str, measure: Measure) -> tuple[set[str], str]:
    """The verdicts, and `about: verdict on each base (difference, interval)`; both empty where nothing has run."""
    accuracy = measure is mean_accuracy
    found = compared(bases, ours, other, measure)
    verdicts = {name: verdict(c, lower_is_better=not accuracy) for name, c in found.items()}
    parts = [f"{VERDICTS[verdicts[name]]} on {name} ({difference(c, accuracy)})" for name, c in found.items()]
    return set(verdicts.values()), f"{about}: {'; '.join(parts)}." if parts else ""


def difference(c: Comparison, accuracy: bool) -> str:
    """With its interval and unit, for a sentence."""
    factor, digits, unit = (100, 1, "points") if accuracy else (1, 4, "nats")
    bounds = f", 95 % {factor * c.low:+.{digits}f} to {factor * c.high:+.{digits}f}" if c.low == c.low else ""
    return f"{factor * c.mean:+.{digits}f} {unit}{bounds}, n = {c.n}"


def lowest(bases: Sequence[Base], measure: Measure, about: str) -> str:
    """The strategy furthest below uniform over the seeds of both, and whether it differs significantly from it."""
    parts = []
    for base in bases:
        found = against(base, base.of_part("fostering"), "uniform", measure)
        found = {name: c for name, c in found.items() if c.n}
        if not found:
            continue
        best, c = min(found.items(), key=lambda item: item[1].mean)
        best, shown = best if c.mean < 0 else "uniform", ""
        if best != "uniform":
            sure = ", after correction too" if c.survives else ", not after correction" if c.significant else ""
            shown = f", against uniform {VERDICTS[verdict(c, lower_is_better=True)]}{sure}"
        parts.append(f"`{best}` on {base.name} ({average(by_seed(base, best, measure).values()):.4f}{shown})")
    return f"{about}: {'; '.join(parts)}." if parts else ""


def uniform_sentence(bases: Sequence[Base]) -> str:
    """When plain uniform is better, and whether the default can be trusted not to be worse."""
    losing = everywhere(
        [
            set(grouped(against(base, base.of_part("fostering"), "uniform", mean_loss), lower_is_better=True)["worse"])
            for base in bases
            if "uniform" in base.runs
        ]
    )
    parts = [f"on every base plain uniform ends significantly lower than {listed(losing)}"] if losing else []
    found = {
        name: verdict(c, lower_is_better=True) for name, c in compared(bases, DEFAULT, "uniform", mean_loss).items()
    }
    better, worse, same, unknown = (listed(name for name in found if found[name] == key) for key in VERDICTS)
    if worse:
        parts.append(f"`{DEFAULT}` is significantly worse than uniform on {worse}: uniform is the safe choice")
    elif better:
        others = [f"on {same} no difference is shown"] * bool(same) + [f"on {unknown}: {UNKNOWN}"] * bool(unknown)
        never = "" if unknown else "never significantly worse than uniform, and "
        parts.append("; ".join([f"`{DEFAULT}` is {never}significantly better than uniform on {better}", *others]))
    elif unknown and not same:
        parts.append(f"{UNKNOWN} about `{DEFAULT}` against uniform on {unknown}")
    elif found:
        shown = f"`{DEFAULT}` is not shown to differ from uniform" + (f" on {same}" if unknown else "")
        shown += f" ({unknown}: {UNKNOWN})" if unknown else ""
        parts.append(f"{shown}; uniform is simpler and needs no probe: take uniform")
    return f"{EQUAL}, {'; '.join(parts)}." if parts else ""


# --- expansion ---------------------------------------------------------------------------------------------------


def settings(bases: Sequence[Base]) -> list[tuple[Base, str]]:
    """Every base and target that `specific` was run for."""
    return [(base, target) for base in bases for target in base.targets if f"{target}: specific" in base.runs]


def everywhere(found: Sequence[set[str]]) -> list[str]:
    """Those in every set, in alphabetical order."""
    return sorted(set.intersection(*found)) if found else []


def expansion_sentences(bases: Sequence[Base]) -> list[str]:
    """Which rules meet the paper's figure everywhere, which beat constant shares, and what follows."""
    places = settings(bases)
    if not places:
        return []
    met = everywhere([set(map(short, meeting(base, target))) for base, target in places])
    fixed = {short(name) for base, target in places for name in constant_shares(base, target)}
    shares, rules = [name for name in met if name in fixed], [name for name in met if name not in fixed]
    above = everywhere([set(above_frontier(base, target)) for base, target in places])
    where = listed(f"{target} on {base.name}" for base, target in places)
    ran = [{short(name) for name in dynamic_rules(base, target)} for base, target in places]
    missing = sorted(set.union(*ran) - set.intersection(*ran))
    return [
        f"Expansion ({where}): more than {100 * PUBLISHED_LESS:.2f} % less degradation than `specific` with at least "
        f"{100 * NEARLY_ALL:.0f} % of its gain, on average over the seeds, is reached everywhere by these constant "
        f"shares: {listed(shares) or 'none'}; by these dynamic rules: {called(rules) or 'none'}.",
        "Significantly less degradation than constant shares at equal gain, everywhere and after correction: "
        f"{called(above) or 'no dynamic rule'}.",
        *counts(places),
        f"Not run everywhere, so in none of the lists of everywhere: {called(missing)}." if missing else "",
        advice(places, shares, [name for name in above if name in rules], [n for n in above if n not in rules]),
        schedule_sentence(places),
    ]


def counts(places: Sequence[tuple[Base, str]]) -> list[str]:
    """Who meets the paper's figure, and who beats constant shares, at most of several places."""
    found = {
        "Both marks": [set(map(short, meeting(base, target))) for base, target in places],
        "Significantly less degradation than constant shares": [set(above_frontier(*place)) for place in places],
    }
    sentences = []
    for title, at in found.items():
        number = {name: sum(name in names for names in at) for name in sorted(set.union(*at))}
        most = [f"{called([name])} at {n}" for name, n in number.items() if len(places) / 2 < n < len(places)]
        if most:
            sentences.append(f"{title} at most of the {len(places)} places: {listed(most)}.")
    return sentences


def advice(places: Sequence[tuple[Base, str]], shares: list[str], good: list[str], other: list[str]) -> str:
    """What to take, if the seeds allow to say.

    Args:
        places: Bases and targets.
        shares: Constant shares that meet the paper's figure everywhere.
        good: Rules that do, too, and are above the frontier everywhere.
        other: Rules that only are above the frontier everywhere.
    """
    doubtful = {short(name) for place in places for name, c in beyond(*place).items() if c.n and c.p != c.p}
    if doubtful and not good + other:
        return f"{UNKNOWN} which rules are worth their probe: {called(sorted(doubtful))}."
    least = f"at {100 * NEARLY_ALL:.0f} % kept"
    kept = {name: min(average_kept(base, target, name) for base, target in places) for name in other}
    enough = [name for name in other if kept[name] >= NEARLY_ALL]
    lower = [f"{called([name])} ({100 * kept[name]:.1f} % kept or more)" for name in other if name not in enough]
    take = f"take a constant share ({listed(shares)})" if shares else "choose a constant share on the frontier"
    ahead = [set(above_frontier(*place)) for place in places]
    behind = set().union(*(below_frontier(*place) for place in places))
    mostly = [n for n in sorted(set().union(*ahead) - behind) if 2 * sum(n in names for names in ahead) > len(places)]
    if good:
        parts = [f"take: {called(good)}"]
    elif enough:
        parts = [f"{least} these beat constant shares, but avoid less than the paper's figure: {called(enough)}"]
    elif lower:
        parts = [f"{least} no dynamic rule is shown to be worth its probe here: {take}"]
    elif mostly:
        parts = [f"no dynamic rule is better everywhere; better at most places and nowhere worse: {called(mostly)}"]
    else:
        parts = [f"no dynamic rule is shown to be worth its probe here: {take}"]
    parts += [f"at lower gain these beat constant shares: {listed(lower)}"] if lower else []
    return f"So for expansion {'; '.join(parts)}."


def average_kept(base: Base, target: str, rule: str) -> float:
    """Share of the gain of `specific` that a rule keeps, mean over the seeds."""
    return interval(by_seed(base, f"{target}: {rule}", measures(target)["kept"]).values()).mean


def called(names: Sequence[str]) -> str:
    """Separated by commas, a rule whose test is off called what it is."""
    return listed(name.replace("(test off)", "(test off: a pure schedule)") for name in names)


def schedule_sentence(places: Sequence[tuple[Base, str]]) -> str:
    """Whether a rule's measured test changes anything against the same schedule with the test off."""
    pairs = [(*place, name, control) for place in places for name, control in controlled(*place)]
    found = corrected(
        {
            f"{short(name)} in {key} of {target} on {base.name}": pair(base, name, control, measures(target)[key])
            for base, target, name, control in pairs
            for key in ("degradation", "gain")
        }
    )
    found = {title: c for title, c in found.items() if c.n}
    differing, at_first, unknown = (
        listed(f"{title} ({100 * c.mean:+.2f} points)" for title, c in found.items() if chosen(c))
        for chosen in (lambda c: c.survives, lambda c: c.significant and not c.survives, lambda c: c.p != c.p)
    )
    about = f"With the measured test against the same schedule without it ({OFF[2:]}; {len(found)} comparisons)"
    only = f" (only before correction: {at_first})" if at_first else ""
    if differing:
        return f"{about}: significantly different, after correction too: {differing}{only}."
    if unknown:
        return f"{about}: {UNKNOWN} whether the schedule (high early, down late) helps or the test{only}."
    rules = listed(dict.fromkeys(short(name) for *_, name, _ in pairs))
    equal = sum(c.low == c.high == 0 for c in found.values())
    only += f" ({equal} of them equal to the last digit)" if equal else ""
    return (
        f"{about}, {rules}: no difference in degradation or gain is shown after correction{only}; what helps is the "
        "schedule (high early, down late), not the measured test."
    ) * bool(found)


OFF = ", test off"  # how the name of a rule ends that moves the target by schedule alone


def controlled(base: Base, target: str) -> list[tuple[str, str]]:
    """Rules with the schedule of a control, and that control."""
    rules = dynamic_rules(base, target)
    controls = [name for name in rules if name.endswith(OFF)]
    return [
        (name, control)
        for control in controls
        for name in rules
        if name != control and f"{name},".startswith(f"{control.removesuffix(OFF)},")
    ]


def above_frontier(base: Base, target: str) -> list[str]:
    """Rules whose degradation is significantly below that of constant shares at equal gain, corrected."""
    found = beyond(base, target)
    return [short(name) for name in grouped(found, lower_is_better=True)["better"] if found[name].survives]


def below_frontier(base: Base, target: str) -> list[str]:
    """Rules whose degradation is significantly above that of constant shares at equal gain, uncorrected."""
    return [short(name) for name in grouped(beyond(base, target), lower_is_better=True)["worse"]]


# --- the paper ---------------------------------------------------------------------------------------------------


def claims(bases: Sequence[Base]) -> str:
    """Which claims of the paper show on every base."""
    shown: dict[str, list[str]] = {"shown": [], "not shown": [], "the opposite shows": []}
    for ours, other, figure in PUBLISHED:
        for unit, measure in (("loss", mean_loss), ("accuracy", mean_accuracy)):
            lower = measure is mean_loss
            found = {verdict(c, lower) for c in compared(bases, ours, other, measure).values()}
            expected, opposite = ("better", "worse") if figure > 0 else ("worse", "better")
            claim = f"{ours} {expected} than {other} in {unit}"
            if found:
                key = "shown" if found == {expected} else "the opposite shows" if found == {opposite} else "not shown"
                shown[key].append(claim)
    for key, names in expansion_claim(bases).items():
        shown[key] += names
    parts = [f"{key} on every base: {listed(names)}" for key, names in shown.items() if names]
    return f"At this size (the paper's figures are benchmark scores): {'; '.join(parts)}." if parts else ""


def expansion_claim(bases: Sequence[Base]) -> Mapping[str, list[str]]:
    """Whether the paper's expansion rule keeps nearly all of the gain and degrades that much less, everywhere."""
    places = [(base, target) for base, target in settings(bases) if f"{target}: versatune" in base.runs]
    if not places:
        return {}
    reached = []
    for base, target in places:
        kept, less = (
            interval(by_seed(base, f"{target}: versatune", measures(target)[key]).values()) for key in ("kept", "less")
        )
        reached.append(meets(kept, less))
    claim = f"expansion with {100 * PUBLISHED_LESS:.2f} % less degradation at nearly the same gain"
    return {"shown" if all(reached) else "not shown": [claim]}
