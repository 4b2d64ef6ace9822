"""What a comparison takes from each run, and what keeps two runs from being compared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from versatune_plugin.report.costs import probe_share
from versatune_plugin.report.runs import Run
from versatune_plugin.report.summary import measured_anew, proportions_at_the_end, shares

CHECKPOINTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a run's steps at which the runs are compared."""

_LEAST_LOSS = 1e-9  # of which per cent are computed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run as far as it can be compared; what its history does not hold is empty or None."""

    run: Run
    facts: Mapping
    """What the first record says of the run: settings, steps and so on."""
    domains: tuple[str, ...]
    start: Mapping[str, float]
    """Losses before the first step, by domain, on the rows of `end`; none where a resumed run took others.

    This and the next two have the domains where they are known.
    """
    end: Mapping[str, float]
    """Losses of the last measurement."""
    errors: Mapping[str, float]
    """Standard errors of `end` over draws of the held-out rows."""
    end_step: int | None
    """Optimizer step of the last measurement."""

    @classmethod
    def of(cls, run: Run) -> "Outcome":
        """What is known of a run."""
        measured = [record for record in run.records if known(record.losses)]
        first, last = (run.records or [None])[0], (measured or [None])[-1]
        from_the_start = first is not None and first.step == 0 and not measured_anew(run.records)
        return cls(
            run=run,
            facts=run.facts,
            domains=tuple(first.proportions) if first else (),
            start=known(first.losses) if from_the_start else {},
            end=known(last.losses) if last else {},
            errors=known(last.loss_errors) if last else {},
            end_step=last.step if last else None,
        )

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def settings(self) -> Mapping:
        """The run's `versatune:` block."""
        return self.facts.get("settings") or {}

    @property
    def targets(self) -> tuple[str, ...]:
        """Target domains of an expansion."""
        target = (self.settings.get("expansion") or {}).get("domain") or ()
        return (target,) if isinstance(target, str) else tuple(target)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps that were planned; where that is not recorded, those that were made."""
        return self.facts.get("num_steps") or self.last("step")

    @property
    def unit(self) -> str:
        """What the run's proportions are shares of."""
        return self.last("unit") or "examples"

    @property
    def loss_unit(self) -> str:
        """What losses are nats of: token or byte."""
        return self.last("loss_unit") or "token"

    @property
    def on_training_batches(self) -> bool:
        """Whether losses are of training batches."""
        return self.last("signal") == "train"

    @property
    def probe(self) -> Mapping[str, Mapping]:
        """By domain, which rows the losses at its end are of."""
        return next((record.probe for record in reversed(self.run.records) if record.probe), {})

    @property
    def probe_share(self) -> float | None:
        """Share of the run's time that its measurements took, in [0, 1]; None where the time is not recorded."""
        return probe_share(self.run.records)

    @property
    def final_proportions(self) -> Mapping[str, float]:
        """Proportions that the last rows were drawn by."""
        return proportions_at_the_end(self.run.records) if self.run.records else {}

    @property
    def realised(self) -> dict[str, float]:
        """Share of each domain in what was drawn, in the unit of the proportions; empty where it is not known."""
        return known(shares(self.run.records[-1], self.unit)) if self.run.records else {}

    def last(self, key: str):
        """A value of the last record; None where it has none."""
        return getattr(self.run.records[-1], key) if self.run.records else None

    def gains(self, losses: Mapping[str, float] | None = None) -> dict[str, float]:
        """Per cent of the loss at the start that it has fallen by, by domain; negative where it rose.

        Args:
            losses: At a measurement, by domain; None: at the last one.
        """
        losses = self.end if losses is None else losses
        return {
            domain: 100 * (first - losses[domain]) / first
            for domain, first in self.start.items()
            if first > _LEAST_LOSS and domain in losses
        }

    def checkpoints(self) -> list[tuple[int, dict[str, float]]]:
        """(step, gains) at the measurements nearest to a quarter, half, three quarters and all of the steps."""
        losses = {record.step: known(record.losses) for record in self.run.records if record.step}
        measured = [step for step in losses if losses[step]]
        nearest = {
            min(measured, key=lambda step: abs(step - share * self.num_steps)) for share in CHECKPOINTS if measured
        }
        return [(step, self.gains(losses[step])) for step in sorted(nearest)]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs that are compared, and the one that the others are set against."""

    outcomes: Sequence[Outcome]
    baseline: Outcome

    @property
    def domains(self) -> tuple[str, ...]:
        """Those of all runs, the baseline's first."""
        return union(self.baseline.domains, *(outcome.domains for outcome in self.outcomes))

    @property
    def others(self) -> list[Outcome]:
        """All runs but the baseline."""
        return [outcome for outcome in self.outcomes if outcome is not self.baseline]

    @property
    def alike(self) -> list[Outcome]:
        """Runs whose gains can be set side by side: known in all domains, on the same rows as the first of them.

        The first is the baseline, where its gains are known.
        """
        whole = [o for o in (self.baseline, *self.others) if o.end_step and o.gains().keys() == set(o.domains)]
        return [outcome for outcome in self.outcomes if outcome in whole and not obstacles(outcome, whole[0])]


def known(by_domain: Mapping | None) -> dict[str, float]:
    """The numbers of a mapping that may hold nulls, or be null itself."""
    return {domain: value for domain, value in (by_domain or {}).items() if value is not None}


def union(*groups: Iterable[str]) -> tuple[str, ...]:
    """Names in the order in which they first occur."""
    return tuple(dict.fromkeys(name for names in groups for name in names))


def mean(values: Mapping[str, float], domains: Sequence[str]) -> float | None:
    """Mean over domains; None where the value of one is not known, or there are none."""
    return sum(values[domain] for domain in domains) / len(domains) if domains and set(domains) <= set(values) else None


def mean_error(errors: Mapping[str, float], domains: Sequence[str]) -> float | None:
    """Standard error of a mean over domains, whose rows are drawn independently; None where one is not known."""
    known_all = domains and set(domains) <= set(errors)
    return math.hypot(*(errors[domain] for domain in domains)) / len(domains) if known_all else None


def obstacle(one: Outcome, other: Outcome, domain: str) -> str | None:
    """Why the losses that two runs ended with in a domain cannot be compared, said of the first run; None: they can."""
    if one is other:
        return None
    if domain not in one.domains:
        return f"lacks a domain of {other.name}"
    if domain not in other.domains:
        return f"has a domain that {other.name} lacks"
    if domain not in one.end:
        return "has no loss"
    if domain not in other.end:
        return f"has a loss where {other.name} has none"
    batches = [outcome.name for outcome in (one, other) if outcome.on_training_batches]
    if batches:
        return (
            f"losses of {' and '.join(batches)} are of training batches, which a mixture chooses, not of held-out rows"
        )
    if one.loss_unit != other.loss_unit:
        return f"losses are in nats per {one.loss_unit}, those of {other.name} in nats per {other.loss_unit}"
    unknown = [outcome.name for outcome in (one, other) if not outcome.probe.get(domain)]
    if unknown:
        return f"it is not recorded which held-out rows {' and '.join(unknown)} was measured on"
    same = _same_rows(one.probe[domain], other.probe[domain], one.loss_unit)
    return None if same else f"was measured on other held-out rows than {other.name}"


def obstacles(one: Outcome, other: Outcome) -> dict[str, list[str]]:
    """Why losses cannot be compared, each with the domains it holds for."""
    found: dict[str, list[str]] = {}
    for domain in union(other.domains, one.domains):
        if (reason := obstacle(one, other, domain)) is not None:
            found.setdefault(reason, []).append(domain)
    return found


def _same_rows(one: Mapping, other: Mapping, loss_unit: str) -> bool:
    """Whether losses are of the same rows; per byte, their tokens may be another tokenizer's."""
    keys = ("fingerprint", "row_texts", "target_texts") if loss_unit == "byte" else ("fingerprint",)
    return any(one.get(key) is not None and one.get(key) == other.get(key) for key in keys)
