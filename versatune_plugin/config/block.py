"""The `versatune:` block, and the args class Axolotl asks for."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from versatune_plugin import strategies
from versatune_plugin.config.blocks import Block, Problem
from versatune_plugin.config.checks import KEYS_OF_STRATEGIES, contradictions, unused_keys
from versatune_plugin.config.sections import (
    SELF,
    DetectionConfig,
    ExpansionConfig,
    GuardsConfig,
    NumbersOrName,
    ODMConfig,
    ProbeConfig,
    ReferenceConfig,
    StagesConfig,
)
from versatune_plugin.domains import SUM_TOLERANCE, check_proportions, in_domain_order
from versatune_plugin.mixture.guards import Guards
from versatune_plugin.strategies import STRATEGIES, Strategy, powered
from versatune_plugin.strategies.staged import STAGED

# What a strategy starts from where `initial_proportions` is left out; all others: detected, a user's own: uniform.
_DEFAULT_START = {
    "uniform": "uniform",
    "specific": "uniform",  # what is left beside the target
    "proportional": "proportional",
    "odm": "uniform",
    "manual": None,
}
Unit = Literal["examples", "tokens", "target_tokens"]

DEFAULT_SIGNAL = {"odm": "train"}
"""Where losses come from, for strategies that do not take held-out rows."""

# Fewest and most held-out rows per domain of the default probe
_PROBE_ROWS = (8, 128)

DETECTION_FILE = Path("versatune/detection.json")
REFERENCES_FILE = Path("versatune/references.json")


class VersaTuneConfig(Block):
    """The `versatune:` block."""

    strategy: str = Field(
        "versatune", description="The rule that sets the proportions: a name, or `module:Class` of your own."
    )
    initial_proportions: NumbersOrName | None = Field(
        None,
        description="Proportions at the start: a name, a proportion per domain (sum 1), or a detection.json. "
        "Default: detected, or the strategy's own.",
    )
    initial_power: float = Field(
        1.0,
        ge=-4,
        le=4,
        strict=True,
        description="Start ~ initial_proportions**power: 1 as given, 0 uniform, -1 inverse.",
    )
    sigma: float = Field(0.5, ge=0, strict=True, description="Scale of a shift per update (Algorithm 2). Value ours.")
    update_interval: float = Field(
        50, gt=0, strict=True, description="Optimizer steps between updates; below 1: a share of the whole run. Ours."
    )
    reference_losses: NumbersOrName | None = Field(
        None,
        description="Reference loss per domain, nats per target token; a references.json; or `self`: the lowest loss "
        "that this run itself has reached so far (ours).",
    )
    signal: Literal["probe", "train"] | None = Field(
        None,
        description="Where losses come from: held-out rows, or the training batches. Default: probe, but for `odm`.",
    )
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    unit: Unit = Field(
        "examples",
        description="What a proportion is a share of: the examples drawn, their tokens, or their target tokens.",
    )
    samples_per_epoch: int | None = Field(
        None, ge=1, strict=True, description="Examples drawn per epoch. Default: the number of training rows."
    )
    domains: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        None, description="Paths of the datasets of each domain, instead of a `domain:` key on each dataset."
    )
    domain_column: str | None = Field(
        None, min_length=1, description="Column of the datasets that names each row's domain."
    )
    expansion: ExpansionConfig | None = None
    stages: StagesConfig = Field(default_factory=StagesConfig)
    odm: ODMConfig = Field(default_factory=ODMConfig)
    guards: GuardsConfig = Field(default_factory=GuardsConfig)
    detection: DetectionConfig | None = None
    reference: ReferenceConfig | None = None
    dataset_domains: list[str] | None = Field(
        None, description="Filled by the plugin: the domain of each entry of `datasets`."
    )
    test_dataset_domains: list[str] | None = Field(
        None, description="Filled by the plugin: the domain of each entry of `test_datasets`."
    )
    only_domain: str | None = Field(None, description="Filled by the plugin: the domain of a reference run.")
    loss_unit: Literal["token", "byte"] = Field(
        "token", description="Filled by the plugin: losses in nats per target token, or per UTF-8 byte of target text."
    )
    sources: dict[str, dict] = Field(
        default_factory=dict,
        description="Filled by the plugin: where the numbers of the start (`detection`) and the reference losses "
        "(`references`) come from.",
    )

    def problems(self) -> list[Problem]:
        """Contradictions between keys."""
        return contradictions(self)

    @property
    def unused(self) -> list[str]:
        """Keys that were given and do nothing under this strategy."""
        return unused_keys(self)

    @property
    def start(self) -> str | dict[str, float] | None:
        """`initial_proportions`, or what the strategy starts from where it is left out."""
        if self.strategy in STAGED:
            return None
        default = _DEFAULT_START.get(self.strategy, "uniform" if ":" in self.strategy else "detected")
        alone = self.strategy == "specific" and self.expansion is not None and self.expansion.share == 1
        own = alone or self.strategy in ("uniform", "proportional")
        return default if own or self.initial_proportions is None else self.initial_proportions

    @property
    def power(self) -> float:
        """The power to which the start is raised."""
        return -1.0 if self.strategy == "inverse" else self.initial_power

    @property
    def detection_file(self) -> Path | None:
        """Where the start is read from (relative to the working directory), or None where it needs no detection."""
        if self.start == "detected":
            return DETECTION_FILE
        return Path(self.start) if isinstance(self.start, str) and self.start.endswith(".json") else None

    @property
    def references_file(self) -> Path | None:
        """Where the reference losses are read from, or None where they come from elsewhere or are not needed."""
        if self.measures_training and not self.needs_reference_losses:
            return None
        if isinstance(self.reference_losses, str):
            return None if self.reference_losses == SELF else Path(self.reference_losses)
        needed = self.reference_losses is None and self.reference and self.needs_reference_losses
        return REFERENCES_FILE if needed else None

    @property
    def needs_reference_losses(self) -> bool:
        """Whether the strategy cannot do without reference losses."""
        return self.kind is not None and self.kind.needs_reference_losses

    @property
    def needs_losses(self) -> bool:
        """Whether the strategy looks at losses at all."""
        return self.kind is not None and self.kind.needs_losses

    @property
    def measures_training(self) -> bool:
        """Whether losses come from the training batches."""
        return (self.signal or DEFAULT_SIGNAL.get(self.strategy, "probe")) == "train"

    @property
    def measures_probes(self) -> bool:
        """Whether losses come from held-out rows."""
        return not self.measures_training and self.probe.rows_per_domain != 0

    @property
    def needs_errors(self) -> bool:
        """Whether the strategy looks at the error of a change."""
        return self.strategy == "versatune" and self.expansion is not None and self.expansion.margin > 0

    def with_measurements(self, start: Mapping | None = None, reference_losses: Mapping | None = None, **more):
        """This block with the numbers of its files in place of their names."""
        numbers = {"initial_proportions": start, "reference_losses": reference_losses}
        changes = {key: dict(value) for key, value in numbers.items() if value is not None} | more
        return type(self).model_validate(self.model_dump(exclude_unset=True) | changes)

    @property
    def kind(self) -> type[Strategy] | Strategy | None:
        """The strategy's class, or an instance of a user's own; None where there is none of that name."""
        if ":" not in self.strategy:
            return STRATEGIES.get(self.strategy)
        try:
            return strategies.own_strategy(self.strategy)
        except ValueError:
            return None

    # What follows needs the domains, which come from the datasets.

    def asked_vector(self, num_rows_by_domain: Mapping[str, int]) -> np.ndarray:
        """Proportions at the start before the guards act on them, shape (num_domains,), sum 1.

        Raises:
            ValueError: The proportions do not fit the domains, or have not been read.
        """
        if self.strategy in STAGED:
            return self.build_strategy(num_rows_by_domain).stages[0].proportions.copy()
        start = self._start_vector(num_rows_by_domain)
        targets = self._target_indices(tuple(num_rows_by_domain))
        share = self.expansion and (self.expansion.share if self.strategy == "specific" else self.expansion.start)
        if targets and share is not None:
            start = strategies.with_share(start, targets, share)
        if targets and self.measures_training and self.needs_reference_losses and not start[list(targets)].any():
            raise ValueError(
                f"versatune.expansion: {', '.join(self.expansion.targets)} starts at 0, so `signal: train` has no loss "
                "of it; give expansion.start"
            )
        return start

    def initial_vector(self, num_rows_by_domain: Mapping[str, int], num_draws: int | None = None) -> np.ndarray:
        """Proportions at the start, shape (num_domains,), sum 1.

        Args:
            num_rows_by_domain: Training rows per domain, in domain order.
            num_draws: Rows that the whole run draws, for the limit on passes; None: without that limit.

        Raises:
            ValueError: The proportions do not fit the domains, have not been read, or cannot keep the guards.
        """
        domains, asked = tuple(num_rows_by_domain), self.asked_vector(num_rows_by_domain)
        guards, caps = self.build_guards(domains), 1.0
        if num_draws is not None:
            caps = guards.caps(list(num_rows_by_domain.values()), np.zeros(len(domains)), num_draws)
            self._check_room(guards, num_rows_by_domain, caps, num_draws)
        start = guards.start(asked, caps)
        if self.strategy == "manual" and not np.array_equal(start, asked):
            raise ValueError(
                "versatune.guards: strategy 'manual' was given proportions outside their bounds: "
                f"{_moved(domains, asked, start)}; change one of the two"
            )
        return start

    def build_guards(self, domains: Sequence[str]) -> Guards:
        """The bounds on proportions in domain order; none under staged strategies."""
        guards = GuardsConfig() if self.strategy in STAGED else self.guards
        return Guards(
            floor=guards.vector("floor", domains),
            ceiling=guards.vector("ceiling", domains),
            max_passes=guards.max_passes or np.inf,
            max_change=guards.max_change or np.inf,
        )

    def build_strategy(self, num_rows_by_domain: Mapping[str, int]) -> Strategy:
        """The strategy with its settings as plain arguments; stages follow from the domains' rows."""
        domains, kind = tuple(num_rows_by_domain), STRATEGIES.get(self.strategy)
        if kind is None:
            return strategies.own_strategy(self.strategy)
        stages, general = self.stages, self.stages.general_of(domains)
        match self.strategy:
            case "versatune" if self.expansion is None:
                return kind(sigma=self.sigma)
            case "versatune":
                home = None if self.expansion.start is None else self._start_vector(num_rows_by_domain)
                return strategies.Expansion(
                    **self._rise(domains),
                    sigma=self.sigma,
                    epsilon=self.expansion.epsilon,
                    margin=self.expansion.margin,
                    home=home,
                    hold=self.expansion.hold,
                    since_start=self.expansion.forgetting_since == "start",
                )
            case "increase_unconditional":
                return kind(**self._rise(domains), sigma=self.sigma)
            case "increase_uniform":
                return kind(**self._rise(domains))
            case "multitask":
                return strategies.multitask(domains, num_rows_by_domain)
            case "sequential":
                return strategies.sequential(domains, num_rows_by_domain, stages.order, general)
            case "mixed_sequential":
                return strategies.mixed_sequential(domains, num_rows_by_domain, general)
            case "dmt":
                return strategies.dmt(domains, num_rows_by_domain, general, stages.kappa)
            case "odm":
                return kind(**self.odm.model_dump())
            case _:
                return kind()

    def _start_vector(self, num_rows_by_domain: Mapping[str, int]) -> np.ndarray:
        """The start before a target's share and the guards act on it."""
        domains = list(num_rows_by_domain)
        if isinstance(self.start, dict):
            start = check_proportions(self.start, domains, "versatune.initial_proportions")
        elif self.start == "proportional":
            rows = np.array(list(num_rows_by_domain.values()), dtype=np.float64)
            start = rows / rows.sum()
        elif self.start == "uniform":
            start = np.full(len(domains), 1 / len(domains))
        else:
            raise ValueError(f"versatune.initial_proportions: {self.detection_file} has not been read")
        try:
            return powered(start, self.power)
        except ValueError as error:
            raise ValueError(f"versatune.initial_proportions: {error}") from error

    def _target_indices(self, domains: Sequence[str]) -> tuple[int, ...]:
        """Of the target domains, none where the strategy has none."""
        has_targets = self.expansion and "expansion.domain" in KEYS_OF_STRATEGIES.get(self.strategy, ())
        return tuple(domains.index(target) for target in self.expansion.targets) if has_targets else ()

    def _rise(self, domains: Sequence[str]) -> dict:
        """What all strategies with a rising target take."""
        return {
            "targets": self._target_indices(domains),
            "delta": self.expansion.delta,
            "ceiling": self.expansion.highest,
            "delta_schedule": self.expansion.delta_schedule,
        }

    def _check_room(self, guards: Guards, num_rows: Mapping[str, int], caps: np.ndarray, num_draws: int) -> None:
        """Whether the run can keep its limit on passes.

        Raises:
            ValueError: It draws more rows than the limit allows in all, or more of a domain by its floor.
        """
        total = sum(num_rows.values())
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
        for domain, floor, cap in zip(num_rows, guards.floor, caps, strict=True):
            if floor > cap:
                most = math.floor(1000 * cap) / 1000
                raise ValueError(
                    f"versatune.guards.floor: {floor:g} of {num_draws:,} rows would pass over the {num_rows[domain]:,} "
                    f"rows of {domain!r} more than {guards.max_passes:g} times (max_passes); give at most {most:g}"
                )

    def reference_vector(self, domains: tuple[str, ...]) -> np.ndarray | None:
        """Reference losses in domain order, shape (num_domains,), or None where the block gives none.

        Raises:
            ValueError: A domain is missing or unknown, or the file has not been read.
        """
        if self.references_file is not None:
            raise ValueError(f"versatune.reference_losses: {self.references_file} has not been read")
        if not isinstance(self.reference_losses, dict):
            return None
        return in_domain_order(self.reference_losses, domains, "versatune.reference_losses")

    def probe_rows(self, share: Callable[[int], float]) -> int:
        """Held-out rows per domain: the user's number, or as many of 8 to 128 as the probe's budget allows.

        Args:
            share: Rows per domain -> the predicted share of the run that probes take (see `probes.Cost.share`).
        """
        if self.measures_training:
            return 0
        if self.probe.rows_per_domain is not None:
            return self.probe.rows_per_domain
        fewest, most = _PROBE_ROWS
        return fewest + bisect.bisect_right(range(fewest + 1, most + 1), self.probe.budget, key=share)

    def interval_in_steps(self, num_steps: int) -> int:
        """Optimizer steps between two updates in a run of `num_steps`.

        Raises:
            ValueError: The interval is longer than the run, so that nothing would ever be updated.
        """
        for problem in interval_problems({"update_interval": self.update_interval}, num_steps):
            raise ValueError(problem)
        interval = self.update_interval if self.update_interval >= 1 else self.update_interval * num_steps
        return max(1, round(interval))


def _moved(domains: Sequence[str], one: np.ndarray, other: np.ndarray) -> str:
    """Domains whose proportions differ, in words."""
    return ", ".join(f"{d} {a:.3g} -> {b:.3g}" for d, a, b in zip(domains, one, other, strict=True) if a != b)


def interval_problems(block: Mapping, num_steps: int) -> list[str]:
    """What is wrong with a block's update interval in a run of `num_steps` optimizer steps."""
    default = VersaTuneConfig.model_fields["update_interval"].default
    interval = block.get("update_interval", default)
    if isinstance(interval, bool) or not isinstance(interval, int | float) or interval <= num_steps:
        return []
    number = f"{interval:g} optimizer steps{', the default,' if interval == default else ''}"
    return [
        f"versatune.update_interval is {number} but the run has only {num_steps}; "
        f"give at most {num_steps}, or a share of the run such as 0.1"
    ]


class VersaTuneArgs(BaseModel):
    """What Axolotl merges into its own schema."""

    versatune: VersaTuneConfig | None = None
