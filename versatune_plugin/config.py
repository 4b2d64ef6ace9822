"""Pydantic models of the `versatune:` block, and the args class Axolotl asks for.

Parts that a later release fills are validated and then refused with "not available yet", never ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag

from versatune_plugin.blocks import Block, Problem
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
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"  # a key itself, put there by mistake, is mostly none
SELF = "self"
"""Stands for the lowest loss that the run itself has reached so far."""
DETECTION_FILE = Path("versatune/detection.json")
REFERENCES_FILE = Path("versatune/references.json")

# A number per domain, or a name or path; the tag keeps a mistake in one out of the other's error messages.
_NumbersOrName = Annotated[
    Annotated[dict[str, Annotated[float, Field(strict=True)]], Tag("numbers")] | Annotated[str, Tag("name")],
    Discriminator(lambda value: "numbers" if isinstance(value, Mapping) else "name"),
]


class ProbeConfig(Block):
    """The fixed held-out rows on which losses are measured."""

    rows_per_domain: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="Held-out rows per domain; 0: measure nothing (fixed strategies only). Default: 8 to 128, as many "
        "as keep the probes below 5 % of the run. Ours.",
    )


class ExpansionConfig(Block):
    """Domain expansion (arXiv 2411.11266, Algorithm 3)."""

    domain: str = Field(description="The target domain.")
    delta: float = Field(0.05, gt=0, lt=1, description="Rise of the target's proportion per update. Ours.")
    epsilon: float = Field(0.5, ge=0, description="Threshold on the others' forgetting. Ours.")
    ceiling: float = Field(0.8, gt=0, le=1, description="The target's proportion does not pass it. Ours.")


class GeneratorConfig(Block):
    """An OpenAI-compatible completions API that serves the base model, to sample from instead of loading it."""

    endpoint: str = Field(min_length=1, description="Base URL, such as http://localhost:8000/v1.")
    model: str | None = Field(None, description="The base model's name there. Default: the YAML's base_model.")
    api_key_env: str = Field("OPENAI_API_KEY", pattern=_VARIABLE, description="Environment variable with the key.")
    concurrency: int = Field(32, ge=1, strict=True, description="Requests in flight.")


class JudgeConfig(Block):
    """Who tells to which domain a sampled text belongs.

    With `endpoint` and `model` a chat model behind an OpenAI-compatible API, with `model` alone a local instruct
    model, with neither a classifier fitted on the training rows.
    """

    endpoint: str | None = Field(None, min_length=1, description="Base URL, such as http://localhost:8000/v1.")
    model: str | None = Field(None, min_length=1, description="Name of the model at the endpoint, or a local model.")
    api_key_env: str = Field("OPENAI_API_KEY", pattern=_VARIABLE, description="Environment variable with the key.")
    concurrency: int = Field(32, ge=1, strict=True, description="Requests in flight at the endpoint.")
    requests_per_minute: int | None = Field(None, ge=1, strict=True, description="Limit at the endpoint.")
    max_text_tokens: int = Field(512, ge=16, strict=True, description="A sampled text is cut off after so many tokens.")
    orders: int = Field(1, ge=1, strict=True, description="Orders of the options in which each text is asked.")
    label_shift_correction: bool = Field(
        False,
        strict=True,
        description="Correct the classifier's mean by its confusion matrix; hardly helps on generated text.",
    )

    def problems(self) -> list[Problem]:
        """Keys that the kind of judge has no use for."""
        problems = []
        if self.endpoint and not self.model:
            problems.append((("model",), "an endpoint needs the name of the model to ask there"))
        if self.label_shift_correction and self.model:
            problems.append((("label_shift_correction",), "only the classifier has it; leave `model` out, or this key"))
        return problems


class DetectionConfig(Block):
    """Domain knowledge detection (arXiv 2411.11266, Algorithm 1)."""

    num_samples: int = Field(40_000, ge=1, strict=True, description="Sequences per iteration (the paper's N_S).")
    iterations: int = Field(5, ge=1, strict=True, description="Iterations (the paper's T).")
    tolerance: float = Field(
        0.02,
        ge=0,
        lt=1,
        strict=True,
        description="Stop early when every domain's 95 % interval is narrower; 0: never. Ours.",
    )
    count: Literal["samples", "tokens"] = Field(
        "samples", description="What a proportion counts: documents, or tokens. Both are in the file."
    )
    max_new_tokens: int = Field(256, ge=1, strict=True, description="Length limit of a sample. Ours.")
    temperature: float = Field(1.0, gt=0, strict=True)
    top_p: float = Field(1.0, gt=0, le=1, strict=True)
    top_k: int = Field(0, ge=0, strict=True, description="0: no limit.")
    batch_size: int = Field(64, ge=1, strict=True, description="Samples generated side by side.")
    seed: int = Field(0, ge=0, strict=True)
    start_token: str | int | None = Field(
        None, description="Token to sample from. Default: BOS, or the end-of-text token of a tokenizer without BOS."
    )
    descriptions: dict[str, str] = Field(
        default_factory=dict, description="A line per domain that tells a judge what it holds."
    )
    generator: GeneratorConfig | None = Field(None, description="Default: the base model is loaded here.")
    judge: JudgeConfig = Field(default_factory=JudgeConfig)


class ReferenceConfig(Block):
    """The small model whose fine-tuned losses are the reference (arXiv 2411.11266, section 3.1)."""

    model: str = Field(min_length=1, description="Name or path of the reference model, of the same tokenizer family.")
    epochs: int = Field(4, ge=1, strict=True, description="Epochs per domain (the paper's T_ref).")
    samples_per_epoch: int | None = Field(
        None, ge=1, strict=True, description="Rows of a domain seen per epoch. Default: all of them."
    )
    stop_when_rising: bool = Field(
        False,
        strict=True,
        description="End a domain's run after the first epoch whose loss has risen. Ours.",
    )


class VersaTuneConfig(Block):
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
        None,
        description="Reference loss per domain, nats per target token; a references.json; or `self`: the lowest loss "
        "that this run itself has reached so far (ours).",
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
    only_domain: str | None = Field(None, description="Filled by the plugin: the domain of a reference run.")
    loss_unit: Literal["token", "byte"] = Field(
        "token", description="Filled by the plugin: losses in nats per target token, or per UTF-8 byte of target text."
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

    @property
    def detection_file(self) -> Path | None:
        """Where the start is read from (relative to the working directory), or None where it needs no detection."""
        if self.start == "detected":
            return DETECTION_FILE
        return Path(self.start) if isinstance(self.start, str) and self.start.endswith(".json") else None

    @property
    def references_file(self) -> Path | None:
        """Where the reference losses are read from, or None where they come from elsewhere or are not needed."""
        if isinstance(self.reference_losses, str):
            return None if self.reference_losses == SELF else Path(self.reference_losses)
        needed = self.strategy in STRATEGIES and STRATEGIES[self.strategy].needs_reference_losses
        return REFERENCES_FILE if self.reference_losses is None and self.reference and needed else None

    def with_measurements(self, start: Mapping | None = None, reference_losses: Mapping | None = None, **more):
        """This block with the numbers of its files in place of their names."""
        numbers = {"initial_proportions": start, "reference_losses": reference_losses}
        changes = {key: dict(value) for key, value in numbers.items() if value is not None} | more
        return type(self).model_validate(self.model_dump(exclude_unset=True) | changes)

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
        if isinstance(self.start, str) and self.start not in _START_NAMES and not self.start.endswith(".json"):
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
            named = self.reference_losses == SELF or self.reference_losses.endswith(".json")
            return [] if named else [(key, f"must be a loss per domain, a .json file or {SELF!r}")]
        if self.reference_losses is None:
            needed = self.strategy in STRATEGIES and STRATEGIES[self.strategy].needs_reference_losses
            hint = f"strategy {self.strategy!r} needs a loss per domain: {{law: 1.21, ...}}, a `reference:` model to "
            return [(key, f"{hint}measure them with, or {SELF!r}")] if needed and not self.reference else []
        return [
            ((*key, domain), f"must be at least 0 nats per target token, got {loss}")
            for domain, loss in self.reference_losses.items()
            if loss < 0
        ]

    def _later_problems(self) -> list[Problem]:
        return [
            ((key,), f"`{key}:` is not available yet; leave it out")
            for key in ("expansion",)
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
        elif self.start == "uniform":
            start = np.full(len(domains), 1 / len(domains))
        else:
            raise ValueError(f"versatune.initial_proportions: {self.detection_file} has not been read")
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
        """Reference losses in domain order, shape (num_domains,), or None where the block gives none.

        Raises:
            ValueError: A domain is missing or unknown, or the file has not been read.
        """
        if self.references_file is not None:
            raise ValueError(f"versatune.reference_losses: {self.references_file} has not been read")
        if self.reference_losses in (None, SELF):
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
    detection = block.get("detection")
    descriptions = detection.get("descriptions") if isinstance(detection, Mapping) else None
    for name in descriptions if isinstance(descriptions, Mapping) else ():
        if name not in domains:
            hint = nearest(str(name), domains)
            problems.append(f"versatune.detection.descriptions names an unknown domain {name!r}{hint}")
    return problems


class VersaTuneArgs(BaseModel):
    """What Axolotl merges into its own schema."""

    versatune: VersaTuneConfig | None = None
