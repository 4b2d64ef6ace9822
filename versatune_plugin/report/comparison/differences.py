"""What differs between runs beside their results, and what keeps these from being compared."""

import json
from collections.abc import Mapping, Sequence

from versatune_plugin.report.comparison.outcomes import Comparison, Outcome, obstacle, obstacles
from versatune_plugin.report.parts import Section, Table
from versatune_plugin.report.runs import flat
from versatune_plugin.report.summary import counted

_OWN_COLUMN = {"strategy"}
_BY_DOMAIN = ("initial_proportions", "reference_losses")  # numbers by domain, no blocks of settings


def what_differs(comparison: Comparison) -> Section:
    """The section on how the runs were made."""
    outcomes = comparison.outcomes
    settings = _settings_table(outcomes)
    strategies = list(dict.fromkeys(o.settings["strategy"] for o in outcomes if o.settings.get("strategy")))
    more = f"{len(settings.rows)} other setting{' differs' if len(settings.rows) == 1 else 's differ'} between them."
    return Section(
        title="What differs",
        text=f"Differences are to {comparison.baseline.name}.",
        parts=[_runs_table(outcomes), *([settings] if settings.rows else [])],
        points=[
            f"{len(outcomes)} runs" + (f", of the strategies {', '.join(strategies)}." if strategies else "."),
            more,
        ],
    )


def _runs_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per run: how it was made and what it cost."""
    header = ["run", "strategy", "start", "steps", "rows drawn", "tokens", "time on probes"]
    rows = [
        [
            outcome.name,
            outcome.settings.get("strategy") or "-",
            _start(outcome),
            counted(outcome.last("step")),
            counted(outcome.last("num_drawn")),
            _tokens(outcome),
            "-" if outcome.probe_share is None else f"{100 * outcome.probe_share:.1f} %",
        ]
        for outcome in outcomes
    ]
    return Table(header=header, rows=rows, words=(1, 2), caption="How the runs were made; - : not recorded")


def _start(outcome: Outcome) -> str:
    """The proportions that a run began with, in short."""
    records = outcome.run.records
    shares = records[0].proportions_before if records else {}
    if not shares:
        return "-"
    if len(shares) > 1 and max(shares.values()) - min(shares.values()) < 1e-9:
        return "uniform"
    ranked = sorted(shares, key=shares.get, reverse=True)
    return _few({domain: f"{shares[domain]:.2f}" for domain in ranked if shares[domain] > 0})


def _few(texts: Mapping[str, str], number: int = 3) -> str:
    """The first entries of a mapping, and how many more there are."""
    shown = [f"{name} {text}" for name, text in list(texts.items())[:number]]
    return ", ".join(shown + ([f"{len(texts) - number} more"] if len(texts) > number else []))


def _tokens(outcome: Outcome) -> str:
    amounts = (outcome.last("tokens_by_domain") or {}).values()
    return counted(None if None in amounts else sum(amounts) or None)


def _settings_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per setting that is not the same in all runs whose settings are known, one column per run."""
    flat = {outcome.name: _set(outcome.settings) for outcome in outcomes if outcome.settings}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings if key not in _OWN_COLUMN)
    rows = []
    for key in keys:
        values = [settings.get(key) for settings in flat.values()]
        if any(value != values[0] for value in values):
            rows.append([key, *(_text(flat.get(outcome.name, {}).get(key)) for outcome in outcomes)])
    header = ["setting", *(outcome.name for outcome in outcomes)]
    words = range(1, len(header))
    return Table(header=header, rows=rows, words=words, caption="Settings that differ; - : not set, or not recorded")


def _set(settings: Mapping) -> dict:
    """Settings by their dotted names, without blocks that are empty."""
    return {name: value for name, value in flat(settings, _BY_DOMAIN).items() if value != {}}


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return _few(
            {name: f"{number:.3g}" if isinstance(number, float) else str(number) for name, number in value.items()}
        )
    return value if isinstance(value, str) else json.dumps(value)


def warnings(comparison: Comparison) -> list[str]:
    """What the reader must know before setting one run against another."""
    outcomes, baseline = comparison.outcomes, comparison.baseline
    trained = [outcome for outcome in outcomes if outcome.run.records]
    found = [f"{o.name}: {problem}" for o in outcomes for problem in (o.run.problem or "").splitlines()]
    if without := [outcome.name for outcome in outcomes if not outcome.run.records]:
        found.append(f"without a readable history: {', '.join(without)}")
    if without := [outcome.name for outcome in trained if not outcome.end]:
        found.append(f"measured no losses: {', '.join(without)}")
    if baseline.end:
        for outcome in comparison.others:
            if outcome.end:
                found += [
                    f"{outcome.name}: {reason} ({', '.join(domains)}): no difference is shown"
                    for reason, domains in obstacles(outcome, baseline).items()
                ]
    elif any(outcome.end for outcome in outcomes):
        found.append(f"the baseline {baseline.name} has no losses: no differences of losses are shown")
    found += [_unfinished(outcome) for outcome in trained if outcome.end and outcome.end_step != outcome.num_steps]
    if baseline.run.records:
        others = [outcome for outcome in trained if outcome is not baseline]
        for say in (_other_amount, _other_base, _other_rows, _other_reference, _other_unit):
            found += [warning for outcome in others if (warning := say(outcome, baseline))]
    return found


def _unfinished(outcome: Outcome) -> str:
    return (
        f"{outcome.name}: the last losses are of step {outcome.end_step} of {outcome.num_steps}; "
        "what is called its end here is that step"
    )


def _other_amount(outcome: Outcome, baseline: Outcome) -> str | None:
    """Runs that were trained for longer have lower losses whatever their mixture."""
    amounts = [(o.last("step"), o.last("num_drawn")) for o in (outcome, baseline)]
    if amounts[0] == amounts[1]:
        return None
    texts = [f"{counted(steps)} steps with {counted(rows)} rows" for steps, rows in amounts]
    return f"{outcome.name} was trained for {texts[0]}, {baseline.name} for {texts[1]}"


def _other_base(outcome: Outcome, baseline: Outcome) -> str | None:
    """The same rows have another loss at the start."""
    changed = [
        f"{domain} {outcome.start[domain]:.3f} and {baseline.start[domain]:.3f}"
        for domain in outcome.start
        if domain in baseline.start and obstacle(outcome, baseline, domain) is None
        if not same_loss(outcome.start[domain], baseline.start[domain])
    ]
    if not changed:
        return None
    return (
        f"{outcome.name} and {baseline.name} began with other losses ({'; '.join(changed)}), as from another base "
        "model: the differences at the end are not the mixtures' alone"
    )


def same_loss(one: float, other: float) -> bool:
    """Whether two measurements are of the same model on the same rows, but for the arithmetic's order."""
    return abs(one - other) <= 1e-3 * max(one, other)


def _other_rows(outcome: Outcome, baseline: Outcome) -> str | None:
    ours, theirs = ((o.facts.get("fingerprints") or {}).get("training_rows") or {} for o in (outcome, baseline))
    changed = [domain for domain in ours if theirs.get(domain, ours[domain]) != ours[domain]]
    return f"{outcome.name} and {baseline.name} were trained on other rows of {', '.join(changed)}" if changed else None


def _other_reference(outcome: Outcome, baseline: Outcome) -> str | None:
    """References that differ make learnable potentials differ, and what strategies do with them."""
    ours, theirs = (o.settings.get("reference_losses") or _first_reference(o) for o in (outcome, baseline))
    if not ours or not theirs or ours == theirs:
        return None
    return (
        f"{outcome.name} was given other reference losses than {baseline.name}: their learnable potentials cannot be "
        "compared"
    )


def _first_reference(outcome: Outcome) -> Mapping | None:
    return outcome.run.records[0].reference_losses


def _other_unit(outcome: Outcome, baseline: Outcome) -> str | None:
    if outcome.unit == baseline.unit:
        return None
    names = [o.unit.replace("_", " ") for o in (outcome, baseline)]
    return f"proportions of {outcome.name} are shares of {names[0]}, those of {baseline.name} of {names[1]}"
