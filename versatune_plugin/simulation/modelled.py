"""Losses from a caricature, for runs that have not been: made for looking at how a rule reacts, no prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.domains import in_domain_order
from versatune_plugin.measuring import references
from versatune_plugin.simulation.run import Losses, Measure

_UNTRAINED = 1.5  # an unknown starting loss, in reference losses
_UNKNOWN_LOSSES = (2.0, 1.0)  # start and end where no reference loss is known


@dataclass(frozen=True, kw_only=True)
class ModelledLosses(Losses):
    """A domain's loss falls with the rows drawn of it, under the proportions of the variant.

    loss_j = reference_j + (start_j - reference_j) * exp(-e_j / scale_j), where e_j are the effective rows: those drawn
    of the domain, of which exp(-n / memory) remain after n rows of other domains. Nothing is transferred between
    domains, and nothing is noisy. All vectors have shape (num_domains,), in domain order.
    """

    kind = "Modelled"

    start: np.ndarray
    """Losses before the first step, nats per target token."""
    reference: np.ndarray
    """Losses after endless training, same unit."""
    scale: np.ndarray
    """Rows after which 1 - 1/e of the way is gone, > 0."""
    memory: float
    """Rows of other domains that wear the effective rows down to 1/e, > 0."""

    def effective_rows(self, effective: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Effective rows after more rows were drawn, `drawn` of each domain."""
        return effective * np.exp(-(drawn.sum() - drawn) / self.memory) + drawn

    def losses(self, effective: np.ndarray) -> np.ndarray:
        """Losses after so many effective rows."""
        return self.reference + (self.start - self.reference) * np.exp(-effective / self.scale)

    def measure(self, config: VersaTuneConfig, interval: int) -> Measure:
        """Follows what a variant draws; training batches tell nothing of what was not drawn."""
        effective = before = np.zeros(len(self.start))

        def follow(step: int, drawn: np.ndarray) -> tuple[np.ndarray | None, None]:
            nonlocal effective, before
            effective, before = self.effective_rows(effective, drawn - before), drawn
            if not (config.measures_probes or (config.measures_training and step)):
                return None, None
            losses = self.losses(effective)
            return np.where(drawn == 0, np.nan, losses) if config.measures_training else losses, None

        return follow


def losses_and_assumptions(
    config: VersaTuneConfig, num_rows: Mapping[str, int], num_draws: int
) -> tuple[ModelledLosses, tuple[str, ...]]:
    """The losses of a run of so many draws, by its references.json where that is there; and what they assume."""
    domains, (begin, end), file = tuple(num_rows), _UNKNOWN_LOSSES, config.references_file
    document = references.read(file) if file is not None and file.exists() else {}
    known = document.get("reference_losses", config.reference_losses)
    if isinstance(known, Mapping):
        reference = in_domain_order(known, domains, "versatune.reference_losses")
        start = np.where(reference > 0, _UNTRAINED * reference, begin)
        origin = f"from {_UNTRAINED:g} times the reference loss ({begin:g} where that is 0) towards it"
    else:
        start, reference = np.full(len(domains), begin), np.full(len(domains), end)
        origin = f"from {begin:g} towards {end:g}, as no reference losses are known"
    if document:
        untrained = [(document.get("curves", {}).get(domain) or [{}])[0].get("loss") for domain in domains]
        start = np.array([start[j] if loss is None else loss for j, loss in enumerate(untrained)], dtype=np.float64)
        origin = f"from the loss before training to the lowest one, both as in {file}"
    scale = np.array(list(num_rows.values()), dtype=np.float64)
    losses = ModelledLosses(start=start, reference=reference, scale=scale, memory=float(num_draws))
    return losses, _assumptions(losses, origin, domains)


def _assumptions(losses: ModelledLosses, origin: str, domains: Sequence[str]) -> tuple[str, ...]:
    ends = zip(domains, losses.start, losses.reference, strict=True)
    both = ", ".join(f"{domain} {start:.3g} -> {end:.3g}" for domain, start, end in ends)
    return (
        "Losses are not re-trained: they come from a caricature, made for looking at how the rule reacts and no "
        "prediction of a run. It assumes:",
        f"- A loss falls exponentially with the rows drawn of its domain, {origin}: {both}. One pass goes 63 % of the "
        "way.",
        f"- Rows of other domains wear that off, to 37 % after as many as the whole run draws ({losses.memory:,.0f}), "
        "but no loss rises above its start: what the base model knew is not forgotten.",
        "- Nothing is learnt from other domains, and no loss is noisy, so that expansion.margin changes nothing.",
    )
