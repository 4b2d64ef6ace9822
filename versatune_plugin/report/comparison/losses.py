"""The section on what losses the runs ended with, in the form of the paper's Table 1."""

from collections.abc import Mapping, Sequence

from versatune_plugin.report.comparison.differences import same_loss
from versatune_plugin.report.comparison.matrices import (
    Difference,
    Row,
    difference,
    entries,
    how_to_read,
    in_words,
    matrix,
)
from versatune_plugin.report.comparison.outcomes import Comparison, Outcome, obstacle
from versatune_plugin.report.parts import Section

_TITLE = "Losses at the end"


def losses_at_the_end(comparison: Comparison, warnings: Sequence[str]) -> Section:
    """One row per run, one column per domain: the loss at the end, and its difference to the baseline's.

    It stands first, so that here the reader is told what must be known before going by any of the numbers.
    """
    measured = [outcome for outcome in comparison.outcomes if outcome.end]
    if not measured:
        return Section(title=_TITLE, parts=[], points=["No run measured losses."], warnings=warnings)
    baseline = comparison.baseline
    domains = [domain for domain in comparison.domains if any(domain in outcome.end for outcome in measured)]
    rows = [
        Row(
            name=outcome.name,
            note=" (training batches)" if outcome.on_training_batches else "",
            entries=entries(outcome.end, outcome.errors, domains),
            changes=_differences(outcome, baseline, domains),
        )
        for outcome in measured
    ]
    base = base_losses(measured)
    before = [Row(name="before training", entries=entries(base, {}, domains), changes={})] if base else []
    units = " or ".join(sorted({"byte" if o.loss_unit == "byte" else "target token" for o in measured}))
    caption = f"Loss at the end, nats per {units}; lower is better; - : not measured"
    return Section(
        title=_TITLE,
        text=how_to_read(rows, baseline.name, "held-out rows"),
        parts=[matrix([*before, *rows], domains, baseline.name, "mean", caption)],
        points=in_words(rows, baseline.name, "ended", " nats"),
        warnings=warnings,
    )


def base_losses(measured: Sequence[Outcome]) -> Mapping[str, float] | None:
    """Losses before training where all runs share them, else None."""
    first, *others = (outcome for outcome in measured)
    shared = first.start and all(
        outcome.start.keys() == first.start.keys()
        and all(
            obstacle(outcome, first, domain) is None and same_loss(outcome.start[domain], first.start[domain])
            for domain in first.start
        )
        for outcome in others
    )
    return first.start if shared else None


def _differences(outcome: Outcome, baseline: Outcome, domains: Sequence[str]) -> dict[str | None, Difference | None]:
    """Differences to the baseline's losses where they can be compared; (None) of the mean where all can."""
    if outcome is baseline:
        return {}
    comparable = [domain for domain in domains if obstacle(outcome, baseline, domain) is None]
    columns = [*comparable, None] if len(comparable) == len(domains) else comparable
    ours, theirs = (entries(of.end, of.errors, domains) for of in (outcome, baseline))
    return {column: difference(ours[column], theirs[column], higher_is_better=False) for column in columns}
