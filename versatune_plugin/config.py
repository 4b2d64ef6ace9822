"""Pydantic models of the `versatune:` block, and the args class Axolotl asks for.

Every mistake of a block is reported at once; an unknown key comes with the nearest valid name. Parts that a
later release fills are validated and then refused with "not available yet", never ignored.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from versatune_plugin.domains import check_proportions, in_domain_order, misfits, nearest
from versatune_plugin.strategies import STRATEGIES, Strategy, powered

LATER_STRATEGIES = (
    "specific",
    "increase_uniform",
    "increase_unconditional",
    "multitask",
    "sequential",
    "mixed_sequential",
    "dmt",
    "odm",
    "dynamic_batch_loading",
)

# What a strategy starts from where `initial_proportions` is left out; None: the user must say.
_DEFAULT_START = {
    "versatune": "detected",
    "constant": "detected",
    "inverse": "detected",
    "uniform": "uniform",
    "proportional": "proportional",
    "manual": None,
}

# The default probe: its budget as a share of the run, the fewest and most rows per domain, and what training on a row
# costs at least (LoRA: a forward pass, and a backward pass of about the same price).
_PROBE_BUDGET = 0.05
_PROBE_ROWS = (8, 128)
_FORWARDS_PER_TRAINED_ROW = 2

_START_NAMES = ("detected", "uniform", "proportional")

Problem = tuple[tuple[str, ...], str]
"""Where (path of keys below the block) and what is wrong."""

# A number per domain, or a name or path; the tag keeps a mistake in one out of the other's error messages.
_NumbersOrName = Annotated[
    Annotated[dict[str, Annotated[float, Field(strict=True)]], Tag("numbers")] | Annotated[str, Tag("name")],
    Discriminator(lambda value: "numbers" if isinstance(value, Mapping) else "name"),
]


def _error(where: tuple, message: str, given: Any) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("versatune", "{message}", {"message": message}), loc=where, input=given
    )


def _without_tag(where: tuple) -> tuple:
    return where[:1] + where[2:] if where[1:2] in (("numbers",), ("name",)) else where


class _Block(BaseModel):
    """A block that reports unknown keys, wrong values and contradictions together."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(cls, data, handler):
        if not isinstance(data, Mapping):
            return handler(data)
        unknown = [key for key in data if key not in cls.model_fields]
        errors = [_error((key,), f"unknown key{nearest(str(key), cls.model_fields)}", data[key]) for key in unknown]
        valid = {key: value for key, value in data.items() if key not in unknown}
        wrong: set = set()
        try:
            block = handler(valid)
        except ValidationError as error:
            errors += [_error(_without_tag(e["loc"]), e["msg"], e["input"]) for e in error.errors(include_url=False)]
            wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
            block = cls._of_valid_keys(handler, {key: value for key, value in valid.items() if key not in wrong})
        if block is not None:
            contradictions = [problem for problem in block.problems() if problem[0][0] not in wrong]
            errors += [_error(where, message, data.get(where[0])) for where, message in contradictions]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return block

    @staticmethod
    def _of_valid_keys(handler, data):
        """What the keys with valid values say, to look for contradictions between them; None where one is needed."""
        try:
            return handler(data)
        except ValidationError:
            return None

    def problems(self) -> list[Problem]:
        """Contradictions between keys that are valid one by one."""
        return []


class ProbeConfig(_Block):
    """The fixed held-out rows on which losses are measured."""

    rows_per_domain: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="Held-out rows per domain; 0: measure nothing (fixed strategies only). Default: 8 to 128, as many "
        "as keep the probes below 5 % of the run. Ours.",
    )


class ExpansionConfig(_Block):
    """Domain expansion (arXiv 2411.11266, Algorithm 3)."""

    domain: str = Field(description="The target domain.")
    delta: float = Field(0.05, gt=0, lt=1, description="Rise of the target's proportion per update. Ours.")
    epsilon: float = Field(0.5, ge=0, description="Threshold on the others' forgetting. Ours.")
    ceiling: float = Field(0.8, gt=0, le=1, description="The target's proportion does not pass it. Ours.")


class JudgeConfig(_Block):
    """The model that tells which domain a sampled text belongs to."""

    endpoint: str = Field(description="Base URL of an OpenAI-compatible API.")
    model: str = Field(description="Name of the judge model there.")


class DetectionConfig(_Block):
    """Domain knowledge detection (arXiv 2411.11266, Algorithm 1)."""

    num_samples: int = Field(40_000, ge=1, description="Sequences per iteration (the paper's N_S).")
    iterations: int = Field(5, ge=1, description="Iterations (the paper's T).")
    judge: JudgeConfig | None = Field(None, description="Default: an embedded classifier.")


class ReferenceConfig(_Block):
    """The small model whose fine-tuned losses are the reference (arXiv 2411.11266, section 3.1)."""

    model: str = Field(description="Name or path of the reference model, same tokenizer.")
    epochs: int = Field(4, ge=1, description="Epochs per domain (the paper's T_ref).")


class VersaTuneConfig(_Block):
    """The `versatune:` block."""

    strategy: str = Field("versatune", description="The rule that sets the proportions.")
    initial_proportions: _NumbersOrName | None = Field(
        None,
        description="Proportions at the start: a name, a proportion per domain (sum 1), or a detection.json. "
        "Default: detected; for the strategies uniform and proportional their own.",
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
    reference_losses: _NumbersOrName | None = Field(
        None, description="Reference loss per domain, nats per target token, or a references.json."
    )
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
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
    detection: DetectionConfig | None = None
    reference: ReferenceConfig | None = None
    dataset_domains: list[str] | None = Field(
        None, description="Filled by the plugin: the domain of each entry of `datasets`."
    )
    test_dataset_domains: list[str] | None = Field(
        None, description="Filled by the plugin: the domain of each entry of `test_datasets`."
    )

    def problems(self) -> list[Problem]:
        """Contradictions between keys, and parts that are not available yet."""
        return [
            *self._strategy_problems(),
            *self._start_problems(),
            *self._reference_problems(),
            *self._later_problems(),
        ]

    @property
    def start(self) -> str | dict[str, float] | None:
        """`initial_proportions`, or what the strategy starts from where it is left out."""
        return _DEFAULT_START.get(self.strategy) if self.initial_proportions is None else self.initial_proportions

    @property
    def power(self) -> float:
        """The power to which the start is raised."""
        return -1.0 if self.strategy == "inverse" else self.initial_power

    def _strategy_problems(self) -> list[Problem]:
        if self.strategy in LATER_STRATEGIES:
            return [(("strategy",), f"{self.strategy!r} is not available yet; use one of {', '.join(STRATEGIES)}")]
        if self.strategy not in STRATEGIES:
            return [(("strategy",), f"unknown strategy{nearest(self.strategy, STRATEGIES)}")]
        problems = []
        if self.probe.rows_per_domain == 0 and STRATEGIES[self.strategy].needs_reference_losses:
            problems.append(
                (
                    ("probe", "rows_per_domain"),
                    f"strategy {self.strategy!r} needs losses: at least 1 row per domain",
                )
            )
        if self.update_interval >= 1 and self.update_interval != int(self.update_interval):
            problems.append((("update_interval",), "must be a whole number of steps, or a share below 1"))
        return problems

    def _start_problems(self) -> list[Problem]:
        key = ("initial_proportions",)
        if self.strategy in ("uniform", "proportional") and self.start != self.strategy:
            return [(key, f"strategy {self.strategy!r} sets the start itself: leave this key out")]
        if self.strategy == "manual" and not isinstance(self.start, dict):
            return [(key, "strategy 'manual' needs a proportion per domain: {law: 0.2, medicine: 0.8}")]
        if self.strategy == "inverse" and self.initial_power != 1:
            return [(("initial_power",), "strategy 'inverse' sets the power itself (-1): leave this key out")]
        if self.start == "detected" and self.strategy in STRATEGIES:
            return [
                (
                    key,
                    "'detected' is not available yet; give uniform, proportional or a proportion per domain",
                )
            ]
        if isinstance(self.start, str) and self.start.endswith(".json"):
            return [(key, "a detection file is not available yet; give uniform or a proportion per domain")]
        if isinstance(self.start, str) and self.start not in _START_NAMES:
            return [
                (
                    key,
                    f"not a name, a proportion per domain or a .json file{nearest(self.start, _START_NAMES)}",
                )
            ]
        if isinstance(self.start, dict):
            try:
                powered(check_proportions(self.start, list(self.start)), self.power)
            except ValueError as error:
                return [(key, str(error))]
        return []

    def _reference_problems(self) -> list[Problem]:
        key = ("reference_losses",)
        if isinstance(self.reference_losses, str):
            return [(key, "a reference file is not available yet; give a loss per domain: {law: 1.21, ...}")]
        if self.reference_losses is None:
            known = self.strategy in STRATEGIES and STRATEGIES[self.strategy].needs_reference_losses
            return (
                [(key, f"strategy {self.strategy!r} needs a reference loss per domain: {{law: 1.21, ...}}")]
                if known
                else []
            )
        return [
            ((*key, domain), f"must be at least 0 nats per target token, got {loss}")
            for domain, loss in self.reference_losses.items()
            if loss < 0
        ]

    def _later_problems(self) -> list[Problem]:
        return [
            ((key,), f"`{key}:` is not available yet; leave it out")
            for key in ("expansion", "detection", "reference")
            if getattr(self, key) is not None
        ]

    # What follows needs the domains, which come from the datasets.

    def initial_vector(self, num_rows_by_domain: dict[str, int]) -> np.ndarray:
        """Proportions at the start, shape (num_domains,), sum 1."""
        domains = list(num_rows_by_domain)
        if isinstance(self.start, dict):
            start = check_proportions(self.start, domains, "versatune.initial_proportions")
        elif self.start == "proportional":
            rows = np.array(list(num_rows_by_domain.values()), dtype=np.float64)
            start = rows / rows.sum()
        else:
            start = np.full(len(domains), 1 / len(domains))
        try:
            return powered(start, self.power)
        except ValueError as error:
            raise ValueError(f"versatune.initial_proportions: {error}") from error

    def build_strategy(self) -> Strategy:
        """The strategy with its settings as plain arguments."""
        return (
            STRATEGIES[self.strategy](sigma=self.sigma) if self.strategy == "versatune" else STRATEGIES[self.strategy]()
        )

    def reference_vector(self, domains: tuple[str, ...]) -> np.ndarray | None:
        """Reference losses in domain order, shape (num_domains,), or None where the block has none."""
        if self.reference_losses is None:
            return None
        return in_domain_order(self.reference_losses, domains, "versatune.reference_losses")

    def probe_rows(self, num_domains: int, interval: int, block_size: int) -> int:
        """Held-out rows per domain: the user's number, or as many as the probe's share of the run allows.

        Args:
            num_domains: Domains to measure.
            interval: Optimizer steps between two probes.
            block_size: Rows per optimizer step.
        """
        if self.probe.rows_per_domain is not None:
            return self.probe.rows_per_domain
        forward_passes = _FORWARDS_PER_TRAINED_ROW * interval * block_size
        fewest, most = _PROBE_ROWS
        return int(min(most, max(fewest, _PROBE_BUDGET * forward_passes / num_domains)))

    def interval_in_steps(self, num_steps: int) -> int:
        """Optimizer steps between two updates in a run of `num_steps`.

        Raises:
            ValueError: The interval is longer than the run, so that nothing would ever be updated.
        """
        for problem in interval_problems({"update_interval": self.update_interval}, num_steps):
            raise ValueError(problem)
        interval = self.update_interval if self.update_interval >= 1 else self.update_interval * num_steps
        return max(1, round(interval))


def interval_problems(block: Mapping, num_steps: int) -> list[str]:
    """What is wrong with a block's update interval in a run of `num_steps` optimizer steps."""
    interval = block.get("update_interval", VersaTuneConfig.model_fields["update_interval"].default)
    if isinstance(interval, bool) or not isinstance(interval, int | float) or interval <= num_steps:
        return []
    return [
        f"versatune.update_interval is {interval:g} optimizer steps but the run has only {num_steps}; "
        f"give at most {num_steps}, or a share of the run such as 0.1"
    ]


def domain_problems(block: Mapping, domains: tuple[str, ...]) -> list[str]:
    """Names in a `versatune:` block that do not fit the domains of the datasets."""
    problems = []
    for key in ("initial_proportions", "reference_losses"):
        if isinstance(block.get(key), Mapping):
            problems += misfits(block[key], domains, f"versatune.{key}")
    return problems


class VersaTuneArgs(BaseModel):
    """What Axolotl merges into its own schema."""

    versatune: VersaTuneConfig | None = None


def readable(error: ValidationError, prefix: str = "versatune") -> list[str]:
    """One line per mistake: the key, what is wrong, what was given."""
    return [
        ".".join([prefix, *map(str, e["loc"])]) + f": {e['msg']} (given: {e['input']!r})"
        for e in error.errors(include_url=False)
    ]
