"""What the reference runs of a `versatune:` block are made with, and what becomes of their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import LossUnit, ReferenceRun
from versatune_plugin.config.sections import ReferenceConfig
from versatune_plugin.measuring.references.checks import misfits
from versatune_plugin.measuring.references.document import UNITS, Model, Probe, References, Result, Tokenizer
from versatune_plugin.measuring.references.runs import DomainTrainer, measure, runs_folder


@dataclass(frozen=True, kw_only=True)
class Making:
    """The making of a references.json, as far as it does not depend on the host."""

    config: VersaTuneConfig
    """The block of the main run."""
    reference: ReferenceConfig
    """The block's `reference:`."""
    file: Path
    base_model: Model
    """The model that the main run trains."""
    reference_model: Model
    num_rows: int
    """Held-out rows measured per domain."""
    settings: Mapping
    """Learning rate, adapter, sequence length and seed of the main run, which the reference runs share."""
    launch: Mapping
    """How the runs are launched, as the file keeps it."""
    difference: str | None = None
    """Why the two models have another tokenizer; None where they share one."""

    @property
    def loss_unit(self) -> LossUnit:
        """What a loss is the mean over, in the reference runs and in the main run."""
        return "token" if self.difference is None else "byte"

    def reference_run(self, domain: str) -> ReferenceRun:
        """What the run of a domain has to know."""
        return ReferenceRun(domain=domain, loss_unit=self.loss_unit, stop_when_rising=self.reference.stop_when_rising)

    @property
    def block(self) -> dict:
        """The `versatune:` block of a reference run."""
        return {
            "strategy": "uniform",
            "probe": {"rows_per_domain": self.num_rows},
            "samples_per_epoch": self.reference.samples_per_epoch,
        }

    def misfits(self, document: References, domains: Sequence[str]) -> list[str]:
        """What in a present references.json is of other runs, as far as it can be told without rows."""
        return misfits(document, self.config, domains, self.base_model, self.reference_model, self.settings)

    def announce(self, steps: Mapping[str, int], warmup_steps: float, say: Callable[[str], None]) -> None:
        """Say in what unit losses are measured where it is unusual, and which runs are no longer than the warm-up.

        Args:
            steps: Optimizer steps of each domain's run.
            warmup_steps: The host's, which fits the main run; a number below 1 is a share of a run and fits every one.
            say: Takes the progress, a line at a time.
        """
        if self.difference is not None:
            say(
                f"{self.reference_model.name} has another tokenizer than {self.base_model.name}: {self.difference}; so "
                "all losses, also those of the main run, are measured in nats per UTF-8 byte of the target text"
            )
        has_warmup = warmup_steps >= 1
        short = [f"{domain} {number}" for domain, number in steps.items() if has_warmup and number <= warmup_steps]
        if short:
            say(
                f"warning: warmup_steps is {warmup_steps:g}, so these reference runs never reach the learning rate: "
                f"{', '.join(short)} step(s); give warmup_ratio instead, or more epochs"
            )

    def measure(
        self, trainer: DomainTrainer, say: Callable[[str], None], on_main: Callable = lambda function: function()
    ) -> dict[str, Result]:
        """Train what is missing, domain after domain (see `runs.measure`)."""
        return measure(
            trainer,
            runs_folder(self.file),
            epochs=self.reference.epochs,
            stop_when_rising=self.reference.stop_when_rising,
            say=say,
            on_main=on_main,
        )

    def document(self, results: Mapping[str, Result], probe: dict[str, dict], data: dict[str, str]) -> References:
        """The content of the references.json.

        Args:
            results: As `measure` returns them.
            probe: What each domain's losses are measured on in the main run (see `probes.describe`).
            data: Fingerprint of each domain's training rows in the main run.
        """
        return References(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=sum(result.seconds for result in results.values()),
            seconds_by_domain={domain: result.seconds for domain, result in results.items()},
            base_model=self.base_model,
            reference_model=self.reference_model,
            tokenizer=Tokenizer(same=self.difference is None, reason=self.difference),
            unit=UNITS[self.loss_unit],
            domains=list(results),
            reference_losses={domain: result.reference_loss for domain, result in results.items()},
            curves={domain: result.curve for domain, result in results.items()},
            stopped_early={domain: result.stopped_early for domain, result in results.items()},
            settings=self.reference.model_dump(exclude={"model"}) | dict(self.settings) | dict(self.launch),
            probe=Probe(rows_per_domain=self.num_rows, domains=probe),
            data=data,
        )
