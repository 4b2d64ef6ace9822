"""What a run uses: numbers only, worked out once from the user's block, what was measured, and the run's length."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from versatune_plugin import strategies
from versatune_plugin.config.block import REPEATS, Unit, VersaTuneConfig
from versatune_plugin.config.checks import KEYS_OF_STRATEGIES
from versatune_plugin.config.measured import LossUnit, Measured, ReferenceRun
from versatune_plugin.config.sections import SELF, GuardsConfig
from versatune_plugin.domains import SUM_TOLERANCE, WRITTEN_TOLERANCE, check_proportions, in_domain_order
from versatune_plugin.mixture.guards import Guards
from versatune_plugin.mixture.mixture import Mixture
from versatune_plugin.strategies import STRATEGIES, Strategy, powered
from versatune_plugin.strategies.staged import STAGED

_INEXACT = 0.05  # of a packed run's rows
_PASSES_OF_UNIMAX = 4  # ours
_PROBE_ROWS = (8, 128)  # fewest and most held-out rows per domain of the default probe

# Keys of the block that say where a run's numbers come from, not what it does with them
_NOT_OF_THE_RUN = {"domains", "domain_column", "detection", "reference"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run uses. Vectors are in domain order, shape (num_domains,)."""

    domains: tuple[str, ...]
    strategy: Strategy
    guards: Guards
    asked: np.ndarray
    """Proportions at the start before the guards act, sum 1."""
    start: np.ndarray
    """Proportions at the start, sum 1."""
    reference_losses: np.ndarray | None
    """In nats per `loss_unit`; None where the block gives none."""
    own_reference: bool
    """Whether a domain's reference is the lowest loss that the run itself has reached."""
    unit: Unit
    """What a proportion is a share of."""
    loss_unit: LossUnit
    of_training: bool
    """Whether losses come from the training batches."""
    num_steps: int
    """Optimizer steps of the run."""
    interval: int
    """Optimizer steps between two updates."""
    stop_when_rising: bool
    """Whether a reference run ends after the first epoch whose loss has risen."""
    sources: Mapping[str, dict]
    """Where the start (`detection`) and the reference losses (`references`) come from."""
    block: dict = field(repr=False)
    """The keys of the block that the run goes by, with numbers in place of files: for the history and a replay."""

    def mixture(self) -> Mixture:
        """The mixture at the beginning of the run."""
        return Mixture(
            self.domains,
            self.strategy,
            self.start,
            self.reference_losses,
            own_reference=self.own_reference,
            guards=self.guards,
            num_steps=self.num_steps,
            of_training=self.of_training,
        )


def resolve(
    config: VersaTuneConfig,
    measured: Measured,
    sizes: Mapping[str, int],
    *,
    num_steps: int,
    steps_per_epoch: int,
    rows_per_step: int,
    reference_run: ReferenceRun | None = None,
) -> Settings:
    """Work out what a run uses.

    Args:
        config: What the user wrote.
        measured: The numbers of the files that it names.
        sizes: Training rows per domain, or their tokens where `unit` says so, in domain order.
        num_steps: Optimizer steps of the run.
        steps_per_epoch: Optimizer steps of an epoch.
        rows_per_step: Rows of an optimizer step over all processes.
        reference_run: What a run that measures a reference loss has to know.

    Raises:
        ValueError: The start does not fit the domains or the guards, a number is missing, or the run is too short for
            the strategy's stages.
    """
    domains = tuple(sizes)
    strategy = build_strategy(config, measured, sizes)
    strategy.plan(num_steps)
    if config.start == REPEATS and not reference_run:
        _check_repeats(config, sizes, num_steps * rows_per_step, rows_per_step)
    interval = steps_per_epoch if reference_run else interval_in_steps(config, num_steps)
    numbers = {
        "initial_proportions": None if measured.start is None else dict(measured.start),
        "reference_losses": None if measured.reference_losses is None else dict(measured.reference_losses),
    }
    block = config.model_dump(exclude=_NOT_OF_THE_RUN) | {key: value for key, value in numbers.items() if value}
    if measured.probe_rows is not None:
        block["probe"]["rows_per_domain"] = measured.probe_rows
    return Settings(
        domains=domains,
        strategy=strategy,
        guards=build_guards(config, domains),
        asked=asked_start(config, measured, sizes),
        start=start_vector(config, measured, sizes, num_steps * rows_per_step),
        reference_losses=reference_vector(config, measured, domains),
        own_reference=config.reference_losses == SELF,
        unit=config.unit,
        loss_unit=reference_run.loss_unit if reference_run else measured.loss_unit,
        of_training=config.measures_training,
        num_steps=num_steps,
        interval=interval,
        stop_when_rising=bool(reference_run and reference_run.stop_when_rising),
        sources=measured.sources,
        block=block,
    )


def provisional(config: VersaTuneConfig, domains: Sequence[str]) -> Measured:
    """Numbers in place of what is still to be measured, to check all the rest: a uniform start, references of 0."""
    return Measured(
        start=dict.fromkeys(domains, 1 / len(domains)) if config.detection_file else None,
        reference_losses=dict.fromkeys(domains, 0.0) if config.references_file else None,
    )


def interval_in_steps(config: VersaTuneConfig, num_steps: int) -> int:
    """Optimizer steps between two updates in a run of `num_steps`, which may be shorter."""
    interval = config.update_interval if config.update_interval >= 1 else config.update_interval * num_steps
    return max(1, round(interval))


def num_probe_rows(config: VersaTuneConfig, measured: Measured, share: Callable[[int], float]) -> int:
    """Held-out rows per domain: the user's number, that of the references, or as many of 8 to 128 as the budget allows.

    Args:
        config: What the user wrote.
        measured: What was measured before the run.
        share: Rows per domain -> the predicted share of the run that probes take (see `probes.Cost.share`).
    """
    if config.measures_training:
        return 0
    given = measured.probe_rows if measured.probe_rows is not None else config.probe.rows_per_domain
    if given is not None:
        return given
    fewest, most = _PROBE_ROWS
    return fewest + bisect.bisect_right(range(fewest + 1, most + 1), config.probe.budget, key=share)


def asked_start(config: VersaTuneConfig, measured: Measured, sizes: Mapping[str, int]) -> np.ndarray:
    """Proportions at the start before the guards act on them, shape (num_domains,), sum 1.

    Raises:
        ValueError: The proportions do not fit the domains, or have not been measured.
    """
    strategy, expansion = build_strategy(config, measured, sizes), config.expansion
    if isinstance(strategy, strategies.Staged):
        return strategy.stages[0].proportions.copy()
    start = _given_start(config, measured, sizes)
    if expansion is None or not (targets := _target_indices(config, tuple(sizes))):
        return start
    share = expansion.share if config.strategy == "specific" else expansion.start
    if share is not None:
        start = strategies.with_share(start, targets, share)
    if config.measures_training and config.needs_reference_losses and not start[list(targets)].any():
        raise ValueError(
            f"versatune.expansion: {', '.join(expansion.targets)} starts at 0, so `signal: train` has no loss of it; "
            "give expansion.start"
        )
    return start


def start_vector(config: VersaTuneConfig, measured: Measured, sizes: Mapping[str, int], num_draws: int) -> np.ndarray:
    """Proportions at the start, shape (num_domains,), sum 1.

    Args:
        config: What the user wrote.
        measured: What was measured before the run.
        sizes: As for `resolve`.
        num_draws: Rows that the whole run draws.

    Raises:
        ValueError: The proportions do not fit the domains, have not been measured, or cannot keep the guards.
    """
    domains, asked = tuple(sizes), asked_start(config, measured, sizes)
    guards = build_guards(config, domains)
    caps = guards.caps(np.array(list(sizes.values())), np.zeros(len(domains)), num_draws)
    _check_room(guards, sizes, caps, num_draws)
    start = guards.start(asked, caps)
    if config.strategy == "manual" and not np.array_equal(start, asked):
        raise ValueError(
            "versatune.guards: strategy 'manual' was given proportions outside their bounds: "
            f"{_moved(domains, asked, start)}; change one of the two"
        )
    return start


def reference_vector(config: VersaTuneConfig, measured: Measured, domains: Sequence[str]) -> np.ndarray | None:
    """Reference losses, shape (num_domains,); None where the block gives none.

    Raises:
        ValueError: A domain is missing or unknown, or they have not been measured.
    """
    losses = measured.reference_losses
    if losses is None and config.references_file is not None:
        raise ValueError(f"versatune.reference_losses: {config.references_file} has not been measured")
    if losses is None and isinstance(config.reference_losses, dict):
        losses = config.reference_losses
    return None if losses is None else in_domain_order(losses, tuple(domains), "versatune.reference_losses")


def build_guards(config: VersaTuneConfig, domains: Sequence[str]) -> Guards:
    """The bounds on proportions in domain order; none under staged strategies."""
    guards = GuardsConfig() if config.strategy in STAGED else config.guards
    return Guards(
        floor=guards.vector("floor", domains),
        ceiling=guards.vector("ceiling", domains),
        max_passes=guards.max_passes or (_PASSES_OF_UNIMAX if config.strategy == "unimax" else np.inf),
        max_change=guards.max_change or np.inf,
    )


def build_strategy(config: VersaTuneConfig, measured: Measured, sizes: Mapping[str, int]) -> Strategy:
    """The strategy with its settings as plain arguments; stages follow from the domains' rows."""
    domains, expansion = tuple(sizes), config.expansion
    if config.strategy not in STRATEGIES:
        return strategies.own_strategy(config.strategy)
    stages, general = config.stages, config.stages.general_of(domains)
    rise: dict = {}
    if expansion is not None:
        rise = {
            "targets": _target_indices(config, domains),
            "delta": expansion.delta,
            "ceiling": expansion.highest,
        }
    match config.strategy:
        case "versatune":
            if expansion is None:
                return strategies.Fostering(sigma=config.sigma)
            return strategies.Expansion(
                **rise,
                sigma=config.sigma,
                epsilon=expansion.epsilon,
                home=None if expansion.start is None else _given_start(config, measured, sizes),
                hold=expansion.hold,
                since_start=expansion.forgetting_since == "start",
            )
        case "increase_unconditional":
            return strategies.IncreaseUnconditional(**rise, sigma=config.sigma)
        case "increase_uniform":
            return strategies.IncreaseUniform(**rise)
        case "multitask":
            return strategies.multitask(domains, sizes)
        case "sequential":
            return strategies.sequential(domains, sizes, stages.order, general)
        case "mixed_sequential":
            return strategies.mixed_sequential(domains, sizes, general)
        case "dmt":
            return strategies.dmt(domains, sizes, general, stages.kappa)
        case "odm":
            return strategies.ODM(**config.odm.model_dump())
        case name:
            return STRATEGIES[name]()


def _given_start(config: VersaTuneConfig, measured: Measured, sizes: Mapping[str, int]) -> np.ndarray:
    """The start before a target's share and the guards act on it."""
    domains, start = list(sizes), config.start
    if config.detection_file is not None:
        if measured.start is None:
            raise ValueError(f"versatune.initial_proportions: {config.detection_file} has not been measured")
        start = dict(measured.start)
    if isinstance(start, dict):
        vector = check_proportions(start, domains, "versatune.initial_proportions", WRITTEN_TOLERANCE)
    elif start in ("proportional", "temperature", REPEATS):
        amounts = np.array(list(sizes.values()), dtype=np.float64)
        if start == REPEATS:
            amounts *= in_domain_order(config.repeats or {}, tuple(domains), "versatune.repeats")
        vector = powered(amounts / amounts.sum(), 1 / config.temperature if start == "temperature" else 1)
    else:
        vector = np.full(len(domains), 1 / len(domains))
    try:
        return powered(vector, config.power)
    except ValueError as error:
        raise ValueError(f"versatune.initial_proportions: {error}") from error


def _check_repeats(config: VersaTuneConfig, sizes: Mapping[str, int], num_draws: int, rows_per_step: int) -> None:
    """Whether a run is as long as the passes over its domains' rows.

    Raises:
        ValueError: It is not, by more than a step and more than 5 % (how many rows a packed step takes is estimated).
    """
    repeats = config.repeats or {}
    wanted = sum(repeats[domain] * number for domain, number in sizes.items())
    if abs(wanted - num_draws) > max(rows_per_step, _INEXACT * wanted):
        epochs = math.ceil(100 * wanted / (config.samples_per_epoch or sum(sizes.values()))) / 100
        raise ValueError(
            f"versatune.repeats: so many passes are {wanted:,.0f} rows, but the run draws {num_draws:,}: give it "
            f"{math.ceil(wanted / rows_per_step):,} steps (max_steps), or {epochs:g} epochs, or other repeats"
        )


def _target_indices(config: VersaTuneConfig, domains: Sequence[str]) -> tuple[int, ...]:
    """Of the target domains, none where the strategy has none."""
    if config.expansion is None or "expansion.domain" not in KEYS_OF_STRATEGIES.get(config.strategy, ()):
        return ()
    return tuple(domains.index(target) for target in config.expansion.targets)


def _check_room(guards: Guards, sizes: Mapping[str, int], caps: np.ndarray, num_draws: int) -> None:
    """Whether the run can keep its limit on passes.

    Raises:
        ValueError: It draws more rows than the limit allows in all, or more of a domain by its floor.
    """
    total = sum(sizes.values())
    if guards.max_passes * total < num_draws:
        least = math.ceil(100 * num_draws / total) / 100
        raise ValueError(
            f"versatune.guards.max_passes: the run draws {num_draws:,} rows, but {guards.max_passes:g} passes over "
            f"{total:,} rows are fewer; give at least {least:g}, or a shorter run"
        )
    if np.minimum(guards.ceiling, caps).sum() < 1 - SUM_TOLERANCE:
        raise ValueError(
            f"versatune.guards: under the ceilings and with at most {guards.max_passes:g} passes (max_passes) the "
            f"domains have too few rows for a run that draws {num_draws:,}; raise one of the two"
        )
    for domain, floor, cap in zip(sizes, np.broadcast_to(guards.floor, len(sizes)), caps, strict=True):
        if floor > cap:
            most = math.floor(1000 * cap) / 1000
            raise ValueError(
                f"versatune.guards.floor: {floor:g} of {num_draws:,} rows would pass over the {sizes[domain]:,} "
                f"rows of {domain!r} more than {guards.max_passes:g} times (max_passes); give at most {most:g}"
            )


def _moved(domains: Sequence[str], one: np.ndarray, other: np.ndarray) -> str:
    """Domains whose proportions differ, in words."""
    return ", ".join(f"{d} {a:.3g} -> {b:.3g}" for d, a, b in zip(domains, one, other, strict=True) if a != b)
