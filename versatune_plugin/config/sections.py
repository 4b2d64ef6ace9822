"""Pydantic models of the blocks inside the `versatune:` block."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag

from versatune_plugin.config.blocks import Block, Problem

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"  # a key itself, put there by mistake, is mostly none

_CEILING = 0.8  # of a target's share; ours

SELF = "self"
"""As `reference_losses`: the lowest loss that the run itself has reached so far."""

_Number = Annotated[float, Field(strict=True)]
_Numbers = Annotated[dict[str, _Number], Tag("numbers")]


def _kind(value) -> str:
    return "numbers" if isinstance(value, Mapping) else "name"


# A number per domain, or one value; the tag keeps a mistake in one out of the other's error messages.
NumbersOrName = Annotated[_Numbers | Annotated[str, Tag("name")], Discriminator(_kind)]
NumbersOrNumber = Annotated[_Numbers | Annotated[_Number, Tag("name")], Discriminator(_kind)]
_Names = Annotated[list[str], Field(min_length=1, json_schema_extra={"uniqueItems": True}), Tag("names")]
NameOrNames = Annotated[
    _Names | Annotated[str, Tag("name")],
    Discriminator(lambda value: "names" if isinstance(value, list) else "name"),
]


class ProbeConfig(Block):
    """The fixed held-out rows on which losses are measured."""

    rows_per_domain: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="Held-out rows measured per domain; 0 measures nothing (strategies without losses only). Default: "
        "8 to 128, as many as `budget` allows. Ours.",
    )
    budget: float = Field(
        0.05,
        gt=0,
        lt=1,
        strict=True,
        description="Share of the run's time that probes are predicted to stay under. Where `rows_per_domain` is "
        "given, those rows are measured, and above this share the log warns. Ours.",
    )


class ExpansionConfig(Block):
    """Domain expansion (arXiv 2411.11266, Algorithm 3), and the targets of the strategies it is compared with."""

    domain: NameOrNames = Field(
        description="The target domain, or a list of several, whose shares and potentials add up."
    )
    delta: float = Field(0.05, gt=0, lt=1, strict=True, description="Rise of the target's share at an update. Ours.")
    epsilon: float = Field(
        0.05,
        ge=0,
        strict=True,
        description="The target rises while the others' forgetting, summed and divided by the number of domains, stays "
        "below epsilon times the target's potential. Ours.",
    )
    ceiling: float | None = Field(
        None,
        gt=0,
        le=1,
        strict=True,
        description="Steps of delta do not take the target's share past it; a bound on everything is `guards.ceiling`. "
        "Default: 0.8, or `start` where that is more. Ours.",
    )
    start: float | None = Field(
        None,
        gt=0,
        lt=1,
        strict=True,
        description="The target's share at the first step. Where the others forgot more than epsilon allows, it then "
        "goes down by delta, not below the initial share. Default: the initial share, from which no step goes down "
        "(the paper's rule).",
    )
    hold: float = Field(
        0.0,
        ge=0,
        lt=1,
        strict=True,
        description="With a `start`: part of the run, from its beginning, in which the target's share is not lowered. "
        "Ours.",
    )
    forgetting_since: Literal["update", "start"] = Field(
        "update",
        description="A loss counts as forgotten as far as it has risen since the last `update` (the paper's), or since "
        "the run's first measurement, `start` (ours).",
    )
    share: float = Field(
        1.0, gt=0, le=1, strict=True, description="Under `specific`: the target's constant share (1 is the paper's)."
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The target domains."""
        return (self.domain,) if isinstance(self.domain, str) else tuple(self.domain)

    @property
    def highest(self) -> float:
        """The ceiling of the targets' share."""
        return max(_CEILING, self.start or 0.0) if self.ceiling is None else self.ceiling

    def problems(self) -> list[Problem]:
        """A start above the ceiling, keys that need others, a target named twice."""
        problems: list[Problem] = []
        if self.start is not None and self.start > self.highest:
            problems.append((("start",), f"must not be above `ceiling`, {self.ceiling:g}"))
        if self.hold and self.start is None:
            problems.append((("hold",), "holds the share that `start` gives: give that, too"))
        if len(set(self.targets)) < len(self.targets):
            problems.append((("domain",), "names a domain twice"))
        return problems


class StagesConfig(Block):
    """The staged strategies (arXiv 2310.05492)."""

    general: str | None = Field(
        None, description="The domain that comes last. Default: the one named `general`, or the last of `order`."
    )
    order: list[str] | None = Field(
        None, description="Under `sequential`: every domain once. Default: as in the datasets, the general one last."
    )
    kappa: float = Field(
        1 / 256,
        gt=0,
        le=1,
        strict=True,
        description="Under `dmt`: share of each specialised set that is mixed into the second stage (arXiv 2310.05492, "
        "section 3.5).",
    )

    def general_of(self, domains: Sequence[str]) -> str | None:
        """The domain that comes last; None where only `order` tells."""
        return self.general or ("general" if "general" in domains and not self.order else None)


class ODMConfig(Block):
    """Online data mixing (arXiv 2312.02406)."""

    alpha: float = Field(
        0.5, ge=0, lt=1, strict=True, description="Weight of the past in the reward estimates. From the authors' runs."
    )
    warm_up: float = Field(
        0.02,
        ge=0,
        le=1,
        strict=True,
        description="Share of the run in which the initial proportions stay. From the authors' scripts.",
    )


class GuardsConfig(Block):
    """Bounds on the proportions of every strategy but the staged ones; the defaults bound nothing. Ours."""

    floor: NumbersOrNumber = Field(
        0.0, description="Lowest proportion: a number for all domains, or per domain, `{law: 0.05}`."
    )
    ceiling: NumbersOrNumber = Field(
        1.0, description="Highest proportion: a number for all domains, or per domain, `{law: 0.5}`."
    )
    max_passes: float | None = Field(
        None, gt=0, strict=True, description="How often the run may pass over a domain's rows. Default: no limit."
    )
    max_change: float | None = Field(
        None, gt=0, le=1, strict=True, description="Largest change of a proportion at an update. Default: no limit."
    )

    def problems(self) -> list[Problem]:
        """Bounds outside [0, 1], or that leave no room between them."""
        bounds = {"floor": self.floor, "ceiling": self.ceiling}
        named = {key: value if isinstance(value, dict) else {None: value} for key, value in bounds.items()}
        return [
            ((key, *([domain] if domain else [])), f"must be between 0 and 1, got {number:g}")
            for key, numbers in named.items()
            for domain, number in numbers.items()
            if not 0 <= number <= 1
        ]

    def vector(self, key: str, domains: Sequence[str]) -> np.ndarray:
        """`floor` or `ceiling` in domain order, shape (num_domains,); a domain without one has no bound."""
        value, without = getattr(self, key), type(self).model_fields[key].default
        return np.array([value.get(d, without) if isinstance(value, dict) else value for d in domains], np.float64)


class GeneratorConfig(Block):
    """An OpenAI-compatible completions API that serves the base model, to sample from instead of loading it."""

    endpoint: str = Field(min_length=1, description="Base URL of the API, such as http://localhost:8000/v1.")
    model: str | None = Field(None, description="The base model's name there. Default: the YAML's `base_model`.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=_VARIABLE, description="Environment variable that holds the key, if one is needed."
    )
    concurrency: int = Field(32, ge=1, strict=True, description="Requests in flight.")


class JudgeConfig(Block):
    """Who tells to which domain a sampled text belongs.

    With `endpoint` and `model` a chat model behind an OpenAI-compatible API, with `model` alone a local instruct
    model, with neither a classifier fitted on the training rows.
    """

    endpoint: str | None = Field(
        None,
        min_length=1,
        description="Base URL of an OpenAI-compatible API whose chat model judges, such as http://localhost:8000/v1.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Name of the model at the endpoint; without `endpoint` a local instruct model. Default: no model, "
        "but a classifier fitted on your training rows.",
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=_VARIABLE, description="Environment variable that holds the key, if one is needed."
    )
    concurrency: int = Field(32, ge=1, strict=True, description="Requests in flight at the endpoint.")
    requests_per_minute: int | None = Field(
        None, ge=1, strict=True, description="New requests per minute at the endpoint. Default: no limit."
    )
    max_text_tokens: int = Field(
        512, ge=16, strict=True, description="Most tokens of a text that a judging model is shown."
    )
    orders: int = Field(
        1,
        ge=1,
        strict=True,
        description="How often a judging model is asked about each text, each time with the domains in another order.",
    )

    def problems(self) -> list[Problem]:
        """Keys that the kind of judge has no use for."""
        if self.endpoint and not self.model:
            return [(("model",), "an endpoint needs the name of the model to ask there")]
        return []


class DetectionConfig(Block):
    """Domain knowledge detection (arXiv 2411.11266, Algorithm 1)."""

    num_samples: int = Field(40_000, ge=1, strict=True, description="Texts per iteration (the paper's N_S).")
    iterations: int = Field(5, ge=1, strict=True, description="Iterations, at most (the paper's T).")
    tolerance: float = Field(
        0.02,
        ge=0,
        lt=1,
        strict=True,
        description="Stop early once every domain's 95 % interval is narrower; 0: never. Ours.",
    )
    count: Literal["samples", "tokens"] = Field(
        "samples", description="What a proportion counts: `samples` (documents) or `tokens`. Both are in the file."
    )
    max_new_tokens: int = Field(256, ge=1, strict=True, description="Length limit of a text, in tokens. Ours.")
    temperature: float = Field(1.0, gt=0, strict=True, description="Temperature of sampling.")
    top_p: float = Field(1.0, gt=0, le=1, strict=True, description="Nucleus of sampling; 1: all tokens.")
    top_k: int = Field(0, ge=0, strict=True, description="Most likely tokens to sample from; 0: all.")
    batch_size: int = Field(64, ge=1, strict=True, description="Texts generated side by side.")
    seed: int = Field(0, ge=0, strict=True, description="Seed of the sampling, of the classifier and of the intervals.")
    start_token: str | Annotated[int, Field(strict=True)] | None = Field(
        None,
        description="Token (text or id) to start a text from. Default: BOS, or the end-of-text token of a tokenizer "
        "without BOS.",
    )
    descriptions: dict[str, str] = Field(
        default_factory=dict, description="A line per domain that tells the judge what it holds."
    )
    generator: GeneratorConfig | None = Field(None, description="Default: the base model is loaded here.")
    judge: JudgeConfig = Field(default_factory=JudgeConfig)


class ReferenceConfig(Block):
    """The small model whose fine-tuned losses are the reference (arXiv 2411.11266, section 3.1)."""

    model: str = Field(
        min_length=1, description="Hub name or folder of the reference model, of the main model's tokenizer family."
    )
    epochs: int = Field(4, ge=1, strict=True, description="Epochs per domain (the paper's T_ref).")
    samples_per_epoch: int | None = Field(
        None, ge=1, strict=True, description="Rows of a domain seen per epoch. Default: all of them."
    )
    stop_when_rising: bool = Field(
        False,
        strict=True,
        description="End a domain's run after the first epoch whose loss has risen. Ours.",
    )
