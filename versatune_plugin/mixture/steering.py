"""Steering: what happens to the mixture at an update, the same in a run and in a replay of one.

    account -> measure -> decide, within caps -> set proportions

Staleness. Rows reach the model some batches after they were drawn: a rank holds up to 1 + workers * prefetch
micro-batches. New proportions therefore act on the first draw that no optimizer step within that look-ahead can need;
it is computed from the step, not from where the loader happens to be, so it is the same on all ranks and after a
resume.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from versatune_plugin.mixture.mixture import Mixture, Update
from versatune_plugin.sampler.feed import Feed
from versatune_plugin.sampler.states import check_state

STATE_VERSION = 1


@dataclass(frozen=True)
class LookAhead:
    """How far the loader draws ahead of training."""

    num_batches: int
    """Micro-batches per rank."""
    num_steps: int
    """The same in optimizer steps, rounded up."""

    @classmethod
    def of_loader(cls, num_workers: int, prefetch_factor: int | None, accumulation: int) -> "LookAhead":
        """The look-ahead of a torch DataLoader.

        Args:
            num_workers: Its worker processes.
            prefetch_factor: Micro-batches that each holds; default: torch's 2.
            accumulation: Micro-batches of an optimizer step on each rank.
        """
        num_batches = 1 + num_workers * (prefetch_factor or 2)
        return cls(num_batches, math.ceil(num_batches / accumulation))


def num_acting_updates(num_steps: int, interval: int, look_ahead: int) -> int:
    """Updates whose proportions act before a run ends; all in optimizer steps."""
    return max(0, (num_steps - look_ahead - 1) // interval)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Losses of all domains at one moment."""

    losses: np.ndarray
    """Shape (num_domains,), in nats per target token or byte; nan where one is not known."""
    pieces: np.ndarray | None = None
    """What `signals.loss_errors` takes; None where it is not known."""
    seconds: float = 0.0
    """What it took."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What happened at one optimizer step. Amounts are int64, shape (num_units, num_domains), rows first."""

    step: int
    """Optimizer steps taken."""
    update: Update
    reference_losses: np.ndarray | None
    """Those that potentials are told by."""
    drawn: np.ndarray
    """What was trained on since the run began."""
    drawn_since_last: np.ndarray
    """What was trained on since the turn before."""
    acts_at_draw: int | None
    """The draw from which on the proportions act; None where they did not change."""
    measured_in_seconds: float

    def by_domain(self, domains: Sequence[str]) -> dict[str, Any]:
        """The fields of a history line that a replay has, too; vectors by domain, what is not finite as None."""
        vectors = {
            "drawn_by_domain": self.drawn[0],
            "losses": self.update.losses,
            "loss_errors": self.update.loss_errors,
            "reference_losses": self.reference_losses,
            "potential": self.update.potential,
            "forgetting": self.update.forgetting,
            "forgetting_since_start": self.update.forgetting_since_start,
            "forgetting_error": self.update.forgetting_error,
            "change_since_start": self.update.change_since_start,
            "change_since_start_error": self.update.change_since_start_error,
            "proportions_before": self.update.proportions_before,
            "proportions": self.update.proportions,
            "proposed": self.update.proposed,
        }
        return {
            "step": self.step,
            "num_drawn": int(self.drawn[0].sum()),
            **{name: by_domain(vector, domains) for name, vector in vectors.items()},
            "expanded": self.update.expanded,
            "test": by_domain(self.update.test, ("left", "right")),
            "note": self.update.note,
            "skipped": self.update.skipped,
            "acts_at_draw": self.acts_at_draw,
        }


class SteeringState(TypedDict):
    """What a checkpoint keeps of a `Steering`, JSON-able."""

    version: int
    step: int
    """Of the last turn; -1 before the first."""
    drawn: list[list[int]]
    """By unit and domain, up to that step."""
    plan: list[list]
    """The planned changes: step and proportions of each."""
    mixture: dict
    feed_kind: str
    feed: dict


class Steering:
    """Steers what a feed draws by a mixture, and counts what was drawn.

    Args:
        mixture: The proportions in force, and what changes them.
        feed: What the loader reads.
        num_steps: Optimizer steps of the run.
        interval: Optimizer steps between updates.
        look_ahead: Optimizer steps from an update to the first one that new proportions can act on.
        measure: From an optimizer step to the losses there; None where nothing is measured.
        amounts: From two optimizer steps to what was trained on from the first up to, not including, the second.
    """

    def __init__(
        self,
        mixture: Mixture,
        feed: Feed,
        *,
        num_steps: int,
        interval: int,
        look_ahead: int,
        measure: Callable[[int], Measurement | None],
        amounts: Callable[[int, int], np.ndarray],
    ) -> None:
        self.mixture = mixture
        self.feed = feed
        self.interval = interval
        self.look_ahead = look_ahead
        self.step = -1
        """Of the last turn; -1 before the first."""
        self._plan = dict(mixture.strategy.plan(num_steps))
        self._num_draws = self._planned_draw(num_steps)
        self._measure = measure
        self._amounts = amounts
        self._drawn = np.zeros((1, len(mixture.domains)), dtype=np.int64)

    @property
    def drawn(self) -> np.ndarray:
        """What was trained on up to the last turn, int64, shape (num_units, num_domains), rows first."""
        return self._drawn

    def begin(self) -> None:
        """Begin a new run: the sampler knows the planned changes of proportions from the start."""
        for step, proportions in self._plan.items():
            self.feed.sampler.set_proportions(proportions, at_draw=self._planned_draw(step))

    def is_due(self, step: int) -> bool:
        """Whether the mixture is updated after this optimizer step: the interval is over, or a planned change acts."""
        return step % self.interval == 0 or step in self._plan

    def update(self, step: int) -> Turn:
        """Measure, and let the strategy set the next proportions."""
        drawn, planned = self._account(step), step in self._plan
        at_draw = self._planned_draw(step) if planned else self.feed.draws_until(step + self.look_ahead)
        caps = 1.0 if planned else self._caps(at_draw)
        measured = self._measure(step)
        if measured is not None:
            update = self.mixture.update(measured.losses, step, measured.pieces, caps)
        elif self.mixture.strategy.needs_losses:
            update = self.mixture.unmeasured()
        else:
            update = self.mixture.advance(step, caps)
        changed = not np.array_equal(update.proportions, update.proportions_before)
        if changed and not planned:  # the sampler has known planned changes since the start
            self.feed.sampler.set_proportions(update.proportions, at_draw=at_draw)
        return self._turn(drawn, update, measured, at_draw if planned or changed else None)

    def observe(self, step: int) -> Turn:
        """Measure, and leave the proportions as they are."""
        drawn, measured = self._account(step), self._measure(step)
        return self._turn(drawn, self._observed(measured), measured, None)

    def change(self, step: int, proportions: np.ndarray) -> Turn:
        """Measure, and set other proportions than the strategy's, as a resumed run may ask for."""
        drawn, measured = self._account(step), self._measure(step)
        update = self.mixture.change(proportions, self._observed(measured))
        at_draw = self.feed.sampler.set_proportions(proportions, at_draw=self.feed.draws_until(step + self.look_ahead))
        return self._turn(drawn, update, measured, at_draw)

    def count(self, step: int) -> Turn:
        """Count what was drawn, and do nothing else."""
        return self._turn(self._account(step), self.mixture.unmeasured(), None, None)

    def _observed(self, measured: Measurement | None) -> Update:
        if measured is None:
            return self.mixture.unmeasured()
        return self.mixture.observe(measured.losses, measured.pieces)

    def _account(self, step: int) -> np.ndarray:
        """What was trained on since the last turn."""
        since_last = self._amounts(max(self.step, 0), step)
        self._drawn, self.step = self._drawn + since_last, step
        self.feed.forget_before(step)
        return since_last

    def _turn(self, drawn: np.ndarray, update: Update, measured: Measurement | None, acts_at_draw: int | None) -> Turn:
        return Turn(
            step=self.step,
            update=update,
            reference_losses=self.mixture.reference_losses,
            drawn=self._drawn,
            drawn_since_last=drawn,
            acts_at_draw=acts_at_draw,
            measured_in_seconds=0.0 if measured is None else measured.seconds,
        )

    def _planned_draw(self, step: int) -> int:
        """The draw at which an optimizer step (counted from 0) is expected to begin: exact unless rows are packed."""
        return step * self.feed.sampler.block_size

    def _caps(self, draw: int) -> np.ndarray | float:
        """Highest proportions from a draw on, by the limit on passes."""
        guards, sampler = self.mixture.guards, self.feed.sampler
        if math.isinf(guards.max_passes):  # to count what will be drawn takes longer than all the rest
            return 1.0
        num_rows = np.array(list(sampler.num_rows_by_domain.values()))
        return guards.caps(num_rows, sampler.drawn_before(draw), self._num_draws - draw)

    # Saved state

    def state_dict(self) -> SteeringState:
        """JSON-able state, that of the mixture and the feed included."""
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "drawn": self._drawn.tolist(),
            "plan": self._listed_plan(),
            "mixture": self.mixture.state_dict(),
            "feed_kind": type(self.feed).__name__,
            "feed": self.feed.state_dict(),
        }

    def load_state_dict(self, state: SteeringState) -> None:
        """Go on from a saved state, bit for bit.

        Raises:
            ValueError: It is of another version, or of a run with other domains, rows, stages or another kind of feed.
        """
        check_state(state, "steering", STATE_VERSION, SteeringState.__annotations__)
        self.mixture.load_state_dict(state["mixture"])
        if state["feed_kind"] != type(self.feed).__name__:
            raise ValueError(
                "the rows of the checkpoint's run came in another way than those of this run (packed, streamed or "
                "neither): resume it with the settings that it had"
            )
        self.feed.load_state_dict(state["feed"])
        if state["plan"] != (plan := self._listed_plan()):
            raise ValueError(
                f"the stages of the checkpoint's run (steps and proportions) were {state['plan']}, those of this run "
                f"are {plan}: resume it with the strategy, stages and number of steps that it had"
            )
        self.step, self._drawn = state["step"], np.array(state["drawn"], dtype=np.int64)

    def _listed_plan(self) -> list[list]:
        """The planned changes, as they are after a way through JSON."""
        return [[step, np.asarray(proportions).tolist()] for step, proportions in self._plan.items()]


def by_domain(vector: Any, domains: Sequence[str]) -> dict[str, Any] | None:
    """A vector as an object keyed by domain; numbers that are not finite become None."""
    if vector is None:
        return None
    values = np.asarray(vector).tolist()
    return {domain: v if math.isfinite(v) else None for domain, v in zip(domains, values, strict=True)}
