"""The `versatune:` block, and the args class Axolotl asks for."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from versatune_plugin import strategies
from versatune_plugin.config.blocks import Block, Problem
from versatune_plugin.config.checks import contradictions, unused_keys
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
from versatune_plugin.domains import ROUNDING
from versatune_plugin.strategies import STRATEGIES, Strategy
from versatune_plugin.strategies.staged import STAGED

# What a strategy starts from where `initial_proportions` is left out; all others: detected, a user's own: uniform.
_DEFAULT_START = {
    "uniform": "uniform",
    "specific": "uniform",  # what is left beside the target
    "proportional": "proportional",
    "temperature": "temperature",
    "unimax": "uniform",
    "odm": "uniform",
    "manual": None,
}
_OWN_START = ("uniform", "proportional", "temperature", "unimax")  # strategies that start from nothing else
Unit = Literal["examples", "tokens", "target_tokens"]

DEFAULT_SIGNAL = {"odm": "train"}
"""Where losses come from, for strategies that do not take held-out rows."""

REPEATS = "repeats"
"""As a start: the passes per domain that the block gives."""

DETECTION_FILE = Path("versatune/detection.json")
REFERENCES_FILE = Path("versatune/references.json")


class VersaTuneConfig(Block):
    """The `versatune:` block."""

    strategy: str = Field(
        "versatune",
        description="The rule that sets the proportions: a name from the table of strategies, or `module:Class` of "
        "your own.",
    )
    initial_proportions: NumbersOrName | None = Field(
        None,
        description="Proportions at the start: `detected` (what the base model knows already), `uniform`, "
        "`proportional` (by number of rows), `temperature` (by a root of it), a proportion per domain (sum 1), or the "
        "path of a detection.json. Default: `detected`; but `uniform` for `specific`, `odm` and a strategy of "
        "your own, none for `manual` and the staged, and `uniform`, `proportional`, `temperature` and `unimax` start "
        "from what they are.",
    )
    temperature: float = Field(
        2.0,
        gt=0,
        strict=True,
        description="Under `temperature`: proportions go by the number of rows to the power of 1 / temperature: 1 is "
        "`proportional`, more is nearer to `uniform` (arXiv 2010.11934, section 3.2).",
    )
    repeats: dict[str, Annotated[float, Field(gt=0, strict=True)]] | None = Field(
        None,
        description="In place of `initial_proportions`: how often the run passes over each domain's rows, "
        "`{law: 3, code: 1}`; the run must be so long.",
    )
    initial_power: float = Field(
        1.0,
        ge=-4,
        le=4,
        strict=True,
        description="Raise the initial proportions to this power and normalise: 1 as given, 0 uniform, -1 inverse, 0.5 "
        "in between.",
    )
    sigma: float = Field(
        0.5,
        ge=0,
        strict=True,
        description="How strongly potential moves the proportions at an update (Algorithm 2). Value ours.",
    )
    update_interval: float = Field(
        50,
        gt=0,
        strict=True,
        description="Optimizer steps between two updates; below 1, a share of the whole run. Ours.",
    )
    reference_losses: NumbersOrName | None = Field(
        None,
        description="What each domain could reach: a loss per domain, in nats per target token; the path of a "
        "references.json; or `self`, the lowest loss that this run has reached so far (ours). Default: "
        "measured, where there is a `reference`.",
    )
    signal: Literal["probe", "train"] | None = Field(
        None,
        description="Where losses come from: `probe`, held-out rows, or `train`, the training batches themselves. "
        "Default: `probe`; `train` for `odm`.",
    )
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    unit: Unit = Field(
        "examples",
        description="What a proportion is a share of: the `examples` drawn, their `tokens`, or their `target_tokens`. "
        "Ours.",
    )
    samples_per_epoch: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="Rows drawn per epoch, rounded up to whole optimizer steps. Default: the number of training rows.",
    )
    domains: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        None,
        description="Paths of the datasets of each domain, `{law: [path, ...]}`, instead of a `domain:` key on each "
        "dataset.",
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
        if alone or self.strategy in _OWN_START:
            return default
        if self.repeats is not None:
            return REPEATS
        return default if self.initial_proportions is None else self.initial_proportions

    @property
    def start_remark(self) -> str | None:
        """What to say of a written start that does not quite sum to 1; None where it does, or none was written."""
        total = sum(self.start.values()) if isinstance(self.start, dict) else 1.0
        if abs(total - 1) <= ROUNDING:
            return None
        return f"versatune.initial_proportions sum to {total:.8g}: each is divided by that"

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
    def kind(self) -> type[Strategy] | Strategy | None:
        """The strategy's class, or an instance of a user's own; None where there is none of that name."""
        if ":" not in self.strategy:
            return STRATEGIES.get(self.strategy)
        try:
            return strategies.own_strategy(self.strategy)
        except ValueError:
            return None


class VersaTuneArgs(BaseModel):
    """What Axolotl merges into its own schema."""

    versatune: VersaTuneConfig | None = None
    versatune_handover: str | None = Field(None, description="Filled by the plugin (see `config.handover`).")
