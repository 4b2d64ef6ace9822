"""Mixture: the proportions in force, the strategy that changes them, and the state a checkpoint keeps."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from versatune_plugin.domains import ProportionsLike, check_domain_names, check_proportions
from versatune_plugin.mixture.guards import Guards
from versatune_plugin.sampler.states import check_state
from versatune_plugin.signals import forgetting_degree, learnable_potential, loss_errors, relative_change_error
from versatune_plugin.strategies.base import Decision, Observation, Strategy

logger = logging.getLogger(__name__)

STATE_VERSION = 5

_NO_GUARDS = Guards()
_MORE_THAN_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Update:
    """One measurement and what followed from it; vectors have shape (num_domains,), in domain order."""

    losses: np.ndarray | None
    """Nats per target token (or byte), as measured; None where nothing was."""
    loss_errors: np.ndarray | None = None
    """Their standard errors over draws of the probe rows; None where they are not known, nan where one is not."""
    potential: np.ndarray | None = None
    forgetting: np.ndarray | None = None
    forgetting_since_start: np.ndarray | None = None
    forgetting_error: np.ndarray | None = None
    """Standard error of the relative change of the losses; None where it is not known."""
    change_since_start: np.ndarray | None = None
    """Relative change of the losses as measured since the run's first measurement, > -1; nan where there is none."""
    change_since_start_error: np.ndarray | None = None
    """Its standard error, see `signals.relative_change_error`; None where it is not known."""
    proportions_before: np.ndarray
    proportions: np.ndarray
    proposed: np.ndarray | None = None
    """What the strategy proposed, where the guards allowed less; else None."""
    expanded: bool | None = None
    test: tuple[float, float] | None = None
    note: str | None = None
    skipped: str | None = None
    """Why the update was skipped, naming the domain; None where it was not."""


class Mixture:
    """Proportions over domains, changed by a strategy at every update.

    Args:
        domains: Names in their order.
        strategy: The rule for the next proportions.
        proportions: At the start; a vector in domain order or a mapping, sum 1.
        reference_losses: Shape (num_domains,), in the unit of the losses; None for strategies without need.
        own_reference: Take as a domain's reference the lowest loss that this mixture has seen, the one at hand
            included, so that potential is 0 at a new best. Ours, not the paper's.
        guards: Bounds on what the strategy proposes.
        num_steps: Optimizer steps of the run.
        of_training: Losses come from the rows drawn, so a domain at proportion 0 may have none (nan); its potential
            and forgetting degree count as 0.
    """

    def __init__(
        self,
        domains: Sequence[str],
        strategy: Strategy,
        proportions: ProportionsLike,
        reference_losses: np.ndarray | None = None,
        own_reference: bool = False,
        *,
        guards: Guards = _NO_GUARDS,
        num_steps: int = 0,
        of_training: bool = False,
    ) -> None:
        self.domains = check_domain_names(domains)
        self.strategy = strategy
        self.proportions = check_proportions(proportions, self.domains)
        self.reference_losses = None if reference_losses is None else np.array(reference_losses, np.float64)
        self.guards = guards
        self._own_reference = own_reference
        self._num_steps = num_steps
        self._of_training = of_training
        self._first_losses: np.ndarray | None = None
        self._first_pieces: np.ndarray | None = None
        self._previous_losses: np.ndarray | None = None
        self._previous_pieces: np.ndarray | None = None
        self._memory: Any = None
        if own_reference and reference_losses is not None:
            raise ValueError("a mixture takes reference losses or its own, not both")
        if strategy.needs_reference_losses and reference_losses is None and not own_reference:
            raise ValueError(f"{type(strategy).__name__} needs reference losses")
        for domain_id, domain in enumerate(self.domains):
            if self.proportions[domain_id] == 0 and strategy.stays_at_zero(domain_id):
                logger.warning("domain %r starts at proportion 0 and will never be drawn", domain)

    def unmeasured(self) -> Update:
        """The proportions in force, where nothing is measured."""
        return Update(losses=None, proportions_before=self.proportions.copy(), proportions=self.proportions.copy())

    def observe(self, losses: np.ndarray, pieces: np.ndarray | None = None) -> Update:
        """A measurement without a change of proportions, as before the first step."""
        return self._measure(losses, pieces, None, 1.0)

    def update(
        self,
        losses: np.ndarray,
        step: int,
        pieces: np.ndarray | None = None,
        caps: np.ndarray | float = 1.0,
    ) -> Update:
        """A measurement after which the strategy sets the next proportions.

        A loss that is NaN, infinite or <= 0 skips the update for all domains with one warning, so that a sick
        domain does not steer the others: the proportions and the losses of the last good measurement stay.

        Args:
            losses: Shape (num_domains,).
            step: Optimizer steps taken.
            pieces: What `signals.loss_errors` takes, to tell the errors of losses and of their changes; None where
                it is not known.
            caps: Highest proportions for now (see `Guards.caps`).
        """
        return self._measure(losses, pieces, step, caps)

    def change(self, proportions: np.ndarray, measured: Update) -> Update:
        """Other proportions from here on, whatever the strategy says, as a resumed run may ask for.

        Args:
            proportions: Shape (num_domains,), sum 1, within the guards.
            measured: What was measured just now, without a change.
        """
        self.proportions = check_proportions(proportions, self.domains)
        return replace(measured, proportions=self.proportions.copy(), note="changed by a resume with other settings")

    def advance(self, step: int, caps: np.ndarray | float = 1.0) -> Update:
        """An update of a strategy that needs no losses, where there are none; as `update` otherwise."""
        return self._follow(self._observation(step), caps, losses=None)

    def _measure(
        self, losses: np.ndarray, pieces: np.ndarray | None, step: int | None, caps: np.ndarray | float
    ) -> Update:
        losses = np.array(losses, dtype=np.float64)
        if not _are_of_the_same_rows(pieces, self._previous_pieces):  # a resumed run may have others
            self._first_losses = self._previous_losses = None
            self._first_pieces, self._previous_pieces = pieces, None
            if self._own_reference:
                self.reference_losses = None
        before = self.proportions.copy()
        unknown = np.isnan(losses) & (before == 0) & self._of_training
        measured: dict[str, Any] = {"losses": losses, "loss_errors": None if pieces is None else loss_errors(pieces)}
        reason = self._reason_to_skip(losses, ~unknown)
        if reason is not None:
            measured |= self._since_start(losses, pieces)
        if reason is not None and step is not None and not self.strategy.needs_losses:
            logger.warning("a loss that cannot be used: %s", reason)
            return self._follow(self._observation(step), caps, **measured)
        if reason is not None:
            logger.warning("update skipped, proportions stay: %s", reason)
            return Update(**measured, proportions_before=before, proportions=before.copy(), skipped=reason)
        if self._own_reference:
            lowest = losses if self.reference_losses is None else self.reference_losses
            self.reference_losses = np.fmin(lowest, losses)
        potential = None
        if self.reference_losses is not None:
            potential = np.where(unknown, 0.0, learnable_potential(losses, self.reference_losses))
        forgetting = _known(forgetting_degree(losses, self._previous_losses))
        since_start = _known(forgetting_degree(losses, self._first_losses))
        first = losses if self._first_losses is None else self._first_losses
        self._first_losses = np.where(np.isnan(first), losses, first)
        error = _change_error(pieces, self._previous_pieces)
        self._previous_losses, self._previous_pieces = losses, pieces
        measured |= self._since_start(losses, pieces) | {
            "potential": potential,
            "forgetting": forgetting,
            "forgetting_since_start": since_start,
            "forgetting_error": error,
        }
        if step is None:
            return Update(**measured, proportions_before=before, proportions=before.copy())
        shown = np.where(unknown, losses[~unknown].mean(), losses)
        observation = self._observation(step, shown, potential, forgetting, since_start)
        return self._follow(observation, caps, **measured)

    def _since_start(self, losses: np.ndarray, pieces: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """Relative changes of measured losses since the first good measurement, and their errors; nothing before it."""
        if self._first_losses is None:
            return {}
        return {
            "change_since_start": losses / self._first_losses - 1,
            "change_since_start_error": _change_error(pieces, self._first_pieces),
        }

    def _observation(
        self,
        step: int,
        losses: np.ndarray | None = None,
        potential: np.ndarray | None = None,
        forgetting: np.ndarray | None = None,
        since_start: np.ndarray | None = None,
    ) -> Observation:
        return Observation(
            domains=self.domains,
            step=step,
            num_steps=self._num_steps,
            proportions=self.proportions.copy(),
            losses=losses,
            potential=potential,
            forgetting=forgetting,
            forgetting_since_start=since_start,
            memory=self._memory,
        )

    def _follow(self, observation: Observation, caps: np.ndarray | float, **measured: Any) -> Update:
        """Do what the strategy decides, as far as the guards allow."""
        before, decision = self.proportions.copy(), self.strategy.decide(observation)
        if not isinstance(decision, Decision):
            raise TypeError(f"strategy {self._name} decided {decision!r} at step {observation.step}, not a Decision")
        key = f"the proportions of strategy {self._name} at step {observation.step}"
        proposed = check_proportions(decision.proportions, self.domains, key)
        memory = self._checked_memory(decision)
        self.proportions, self._memory = self.guards.apply(before, proposed, caps), memory
        if (self.proportions > np.asarray(self.guards.ceiling) + _MORE_THAN_ROUNDING).any():
            logger.warning("guards.ceiling gives way to guards.max_passes: the other domains have too few rows left")
        return Update(
            **measured,
            proportions_before=before,
            proportions=self.proportions.copy(),
            proposed=None if np.array_equal(proposed, self.proportions) else proposed,
            expanded=decision.expanded,
            test=decision.test,
            note=decision.note,
        )

    @property
    def _name(self) -> str:
        return type(self.strategy).__name__

    def _checked_memory(self, decision: Decision) -> Any:
        """A strategy's memory as it would be after a resume."""
        try:
            return json.loads(json.dumps(decision.memory, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the memory of strategy {self._name} must be plain JSON: {error}") from error

    def _reason_to_skip(self, losses: np.ndarray, known: np.ndarray) -> str | None:
        sick = [
            f"{domain!r} has "
            + ("been trained on no target token yet" if self._of_training and np.isnan(loss) else f"loss {loss}")
            for domain, loss, is_known in zip(self.domains, losses, known, strict=True)
            if is_known and not (np.isfinite(loss) and loss > 0)
        ]
        return "domain " + ", ".join(sick) if sick else None

    def state_dict(self) -> dict:
        """JSON-able state: proportions in force, first and last good measurement, lowest losses as a reference."""
        return {
            "version": STATE_VERSION,
            "domains": list(self.domains),
            "proportions": self.proportions.tolist(),
            "first_losses": _listed(self._first_losses),
            "first_pieces": None if self._first_pieces is None else self._first_pieces.tolist(),
            "previous_losses": _listed(self._previous_losses),
            "previous_pieces": None if self._previous_pieces is None else self._previous_pieces.tolist(),
            "lowest_losses": _listed(self.reference_losses) if self._own_reference else None,
            "strategy": self._name,
            "memory": self._memory,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, bit for bit.

        Raises:
            ValueError: The state has another version, or other domains than this mixture.
        """
        check_state(state, "mixture", STATE_VERSION, self.state_dict())
        if list(state["domains"]) != list(self.domains):
            raise ValueError(f"mixture state has domains {state['domains']}, this run has {list(self.domains)}")
        self.proportions = np.array(state["proportions"], dtype=np.float64)
        self._first_losses = _array(state["first_losses"])
        self._first_pieces = None if state["first_pieces"] is None else np.array(state["first_pieces"])
        self._previous_losses = _array(state["previous_losses"])
        self._previous_pieces = None if state["previous_pieces"] is None else np.array(state["previous_pieces"])
        self._memory = state["memory"] if state["strategy"] == self._name else None  # another one's means nothing
        if self._own_reference:
            self.reference_losses = _array(state["lowest_losses"])  # none where the run had other references


def _are_of_the_same_rows(pieces: np.ndarray | None, previous: np.ndarray | None) -> bool:
    """Whether two measurements can be compared: a resumed run may have other probes, or another signal."""
    if pieces is None or previous is None:
        return pieces is previous
    return pieces.shape == previous.shape and np.array_equal(pieces[1:], previous[1:])


def _change_error(pieces: np.ndarray | None, before: np.ndarray | None) -> np.ndarray | None:
    """The standard error of a relative change, where both measurements come in pieces."""
    return None if pieces is None or before is None else relative_change_error(pieces, before)


def _known(forgetting: np.ndarray) -> np.ndarray:
    """0 where a loss is not known now, or was not before."""
    return np.nan_to_num(forgetting, nan=0.0, posinf=np.inf)


def _listed(vector: np.ndarray | None) -> list | None:
    """For strict JSON: what is not known becomes null."""
    return None if vector is None else [None if np.isnan(value) else value for value in vector.tolist()]


def _array(values: list | None) -> np.ndarray | None:
    return None if values is None else np.array(values, dtype=np.float64)
