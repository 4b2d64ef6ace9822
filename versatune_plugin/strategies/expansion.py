"""Domain expansion: raise the share of target domains for as long as the others do not forget too much.

`expand` is the paper's rule (arXiv 2411.11266, Algorithm 3) and `Expansion` applies it at every update; the two
strategies that the paper compares it with raise the targets' share by the same steps without looking at forgetting.
The targets' share is the sum of their proportions. Sums that decide are exact (`math.fsum`), so that the order of
the domains never does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from versatune_plugin.domains import ROUNDING
from versatune_plugin.strategies.base import Decision, Observation, Strategy, known
from versatune_plugin.strategies.fostering import foster

Targets = int | Sequence[int]
"""Index of the target domain, or indices of several; their order does not matter."""


def expansion_test(
    potential: np.ndarray, forgetting: np.ndarray, targets: Targets, epsilon: float
) -> tuple[float, float]:
    """Both sides of the test (arXiv 2411.11266, Algorithm 3, line 8): the targets rise where left < right.

    Left is (1/k) * sum of phi over the domains that are no target (divided by all k of them, as printed there);
    right is epsilon * gamma, several targets' gammas summed.

    Args:
        potential: Learnable potential (gamma), in [0, 1], shape (num_domains,).
        forgetting: Forgetting degree (phi), >= 0, shape (num_domains,).
        targets: Index or indices of the target domains.
        epsilon: How much of the others' forgetting a unit of potential outweighs, >= 0.
    """
    potential, forgetting = np.asarray(potential, np.float64), np.asarray(forgetting, np.float64)
    is_target = _is_target(targets, len(potential))
    return math.fsum(forgetting[~is_target]) / len(forgetting), epsilon * math.fsum(potential[is_target])


def expand(
    proportions: np.ndarray,
    potential: np.ndarray,
    forgetting: np.ndarray,
    target: Targets,
    sigma: float,
    delta: float,
    epsilon: float,
    ceiling: float = 1.0,
) -> tuple[np.ndarray, bool]:
    """Next proportions, shape (num_domains,), sum 1, and whether the target rose (arXiv 2411.11266, Algorithm 3).

    Where `expansion_test` holds: P_e + delta for the target e, and P'_j / sum_{i != e} P'_i * (1 - P_e - delta) for
    every other j, with P'_j = P_j * (1 + sigma * gamma_j). (Line 9 prints P_j in that last bracket; only P_e makes the
    sum 1.) Else, and where nothing is left of delta, Algorithm 2 for all domains.

    Ours: delta is clipped so that the targets' share stays at or below `ceiling`; several targets share it by their
    gammas. A target may rise from 0, another domain at 0 stays there. If all domains are targets, or no other has a
    proportion to give, Algorithm 2 follows too.

    Args:
        proportions: In force now, each >= 0, sum 1.
        potential: Learnable potential (gamma), in [0, 1].
        forgetting: Forgetting degree (phi), >= 0.
        target: Index of the target domain, or indices of several.
        sigma: Scale of the shift among the other domains, >= 0.
        delta: Rise of the targets' share, >= 0.
        epsilon: Threshold of the test, >= 0.
        ceiling: This rise does not take the targets' share past it, in [0, 1]; Algorithm 2 may, see `Expansion`.
    """
    proportions, potential = np.asarray(proportions, np.float64), np.asarray(potential, np.float64)
    is_target = _is_target(target, len(proportions))
    left, right = expansion_test(potential, forgetting, target, epsilon)
    rise = _rise(proportions, is_target, delta, ceiling) if left < right else 0.0
    if rise > 0:
        return _raised(proportions, potential, is_target, sigma, rise), True
    return foster(proportions, potential, sigma), False


def with_share(proportions: np.ndarray, targets: Targets, share: float) -> np.ndarray:
    """Proportions whose targets sum to `share`, shape (num_domains,), sum 1.

    The ratios among the targets stay, and so do those among the others; a group that is all at 0 is split evenly.
    Where every domain is a target, the share is 1 whatever was asked for.

    Args:
        proportions: Each >= 0.
        targets: Index or indices of the target domains.
        share: In [0, 1]; 1 is specific fine-tuning, 100 % target domain (compared with in arXiv 2411.11266).
    """
    proportions = np.asarray(proportions, np.float64)
    is_target = _is_target(targets, len(proportions))
    share = 1.0 if is_target.all() else share
    moved = np.empty_like(proportions)
    moved[is_target] = _normalised(proportions[is_target]) * share
    moved[~is_target] = _normalised(proportions[~is_target]) * (1.0 - share)
    return moved


@dataclass(frozen=True)
class Expansion(Strategy):
    """`expand` at every update; with the defaults the paper's rule (arXiv 2411.11266, Algorithm 3).

    A domain at 0 stays there unless it is a target.
    """

    sigma: float
    """Scale of the shift by potential, >= 0."""
    targets: tuple[int, ...]
    """Indices of the target domains."""
    delta: float
    """Rise of the targets' share per update, in (0, 1)."""
    epsilon: float
    """How much of the others' forgetting a unit of the targets' potential outweighs, >= 0."""
    ceiling: float = 1.0
    """Steps of delta do not take the targets' share past it, in (0, 1]; Algorithm 2 may."""
    home: np.ndarray | None = None
    """Proportions to go back towards, shape (num_domains,), sum 1; ours. Where the test fails and others forgot, the
    targets' share goes down by delta, but not below their share in `home`. None: the paper's rule, which never lowers
    it by a step."""
    hold: float = 0.0
    """Part of the run, from its beginning, in [0, 1), in which the targets' share is not lowered; ours. It acts where
    there is a `home`."""
    since_start: bool = False
    """Whether a loss counts as forgotten as far as it has risen since the run's first measurement (ours), or since the
    last update (the paper's)."""

    needs_reference_losses = True
    keeps_zero = True

    def decide(self, observation: Observation) -> Decision:
        """The targets raised, lowered towards home, or everything fostered; with the test that decided."""
        test = self.test(observation)
        rises = test is None or test[0] < test[1]
        moved = self._raise(observation) if rises else self._lower(observation, test[0] if test else 0.0)
        return Decision(
            proportions=self._fostered(observation) if moved is None else moved,
            expanded=rises and moved is not None,
            test=test,
            note=self._outcome(observation, rises, moved is not None) + self._reason(observation, test),
        )

    def stays_at_zero(self, domain_id: int) -> bool:
        """All but the targets."""
        return domain_id not in self.targets

    def test(self, observation: Observation) -> tuple[float, float] | None:
        """Both sides of `expansion_test`; None where the targets rise without one."""
        forgetting = observation.forgetting_since_start if self.since_start else observation.forgetting
        return expansion_test(known(observation.potential), known(forgetting), self.targets, self.epsilon)

    def _raise(self, observation: Observation) -> np.ndarray | None:
        """Proportions with the targets up by delta, None where nothing is left of it."""
        is_target = _is_target(self.targets, len(observation.proportions))
        rise = _rise(observation.proportions, is_target, self.delta, self.ceiling)
        if rise <= 0:
            return None
        return _raised(observation.proportions, known(observation.potential), is_target, self.sigma, rise)

    def _lower(self, observation: Observation, forgotten: float) -> np.ndarray | None:
        """Proportions with the targets down by delta towards home, None where there is no need or nowhere to go."""
        proportions = observation.proportions
        is_target = _is_target(self.targets, len(proportions))
        before = math.fsum(proportions[is_target])
        least = before if self.home is None or self._holds(observation) else math.fsum(self.home[is_target])
        if forgotten == 0 or min(self.delta, before - least) <= ROUNDING or not proportions[~is_target].any():
            return None
        share = max(before - self.delta, least)
        lowered = _normalised(proportions[is_target]) * share
        return _moved(proportions, known(observation.potential), is_target, self.sigma, lowered, 1.0 - share)

    def _fostered(self, observation: Observation) -> np.ndarray:
        """Algorithm 2 for all domains, or for the others alone while the targets are held."""
        proportions, potential = observation.proportions, known(observation.potential)
        is_target = _is_target(self.targets, len(proportions))
        if not self._holds(observation) or not proportions[~is_target].any():
            return foster(proportions, potential, self.sigma)
        rest = 1.0 - math.fsum(proportions[is_target])
        return _moved(proportions, potential, is_target, self.sigma, proportions[is_target], rest)

    def _held_until(self, num_steps: int) -> float:
        return self.hold * num_steps - ROUNDING

    def _holds(self, observation: Observation) -> bool:
        return self.home is not None and observation.step < self._held_until(observation.num_steps)

    def _outcome(self, observation: Observation, rises: bool, moved: bool) -> str:
        if rises:
            return _rise_note(observation, self.targets, self.ceiling, moved)
        names = _names(observation, self.targets)
        until = f", held until step {math.ceil(self._held_until(observation.num_steps))}"
        return f"{names} lowered" if moved else f"no step for {names}{until if self._holds(observation) else ''}"

    def _reason(self, observation: Observation, test: tuple[float, float] | None) -> str:
        if test is None:
            return ""
        left, right = test
        potentials = known(observation.potential)
        potential = math.fsum(potentials[_is_target(self.targets, len(potentials))])
        if potential == 0:
            return ": no potential left"
        sign = "<" if left < right else ">="
        return f": others forgot {left:.3g} {sign} {self.epsilon:g} x {potential:.3g}"


@dataclass(frozen=True)
class IncreaseUnconditional(Expansion):
    """Algorithm 3 without the test of its line 8 (arXiv 2411.11266, section 5, Fig. 4): up at every update.

    At the ceiling Algorithm 2 follows, as in `Expansion`. Where no target has potential, delta is shared evenly.
    `home`, `hold` and `since_start` have nothing to act on.
    """

    epsilon: float = field(default=math.inf, init=False)

    def test(self, observation: Observation) -> None:
        """None: nothing is tested."""
        return None


@dataclass(frozen=True)
class IncreaseUniform(Strategy):
    """The targets up by delta at every update, evenly, and the rest even among the others (after arXiv 2411.11266)."""

    targets: tuple[int, ...]
    """Indices of the target domains."""
    delta: float
    """Rise of the targets' share per update, in (0, 1)."""
    ceiling: float = 1.0
    """The targets' share does not pass it, in (0, 1]."""

    needs_losses = False

    def decide(self, observation: Observation) -> Decision:
        """The targets raised up to the ceiling, and the rest even."""
        proportions = observation.proportions
        is_target = _is_target(self.targets, len(proportions))
        rise = _rise(proportions, is_target, self.delta, self.ceiling)
        rest = max(1.0 - math.fsum(proportions[is_target]) - rise, 0.0)
        moved = np.empty_like(proportions)
        moved[is_target] = proportions[is_target] + rise / is_target.sum()
        moved[~is_target] = rest / max((~is_target).sum(), 1)
        note = _rise_note(observation, self.targets, self.ceiling, rise > 0)
        return Decision(proportions=moved, expanded=rise > 0, note=note)


def _is_target(targets: Targets, num_domains: int) -> np.ndarray:
    """Boolean, shape (num_domains,)."""
    is_target = np.zeros(num_domains, dtype=bool)
    is_target[np.atleast_1d(targets)] = True
    return is_target


def _normalised(values: np.ndarray) -> np.ndarray:
    """Values >= 0 scaled to sum 1; even where all are 0, and none where there are none."""
    return values / values.sum() if values.any() else np.ones_like(values) / values.size


def _rise(proportions: np.ndarray, is_target: np.ndarray, delta: float, ceiling: float) -> float:
    """How far the targets' share can go up: delta, clipped at the ceiling; 0 where the others have nothing to give."""
    room = ceiling - math.fsum(proportions[is_target])
    if room <= ROUNDING or not proportions[~is_target].any():
        return 0.0
    return min(delta, room)


def _raised(
    proportions: np.ndarray, potential: np.ndarray, is_target: np.ndarray, sigma: float, rise: float
) -> np.ndarray:
    """Proportions with the targets' share up by `rise` > 0 (arXiv 2411.11266, Algorithm 3, line 9)."""
    raised = proportions[is_target] + rise * _normalised(potential[is_target])
    rest = 1.0 - math.fsum(proportions[is_target]) - rise
    return _moved(proportions, potential, is_target, sigma, raised, rest)


def _moved(
    proportions: np.ndarray,
    potential: np.ndarray,
    is_target: np.ndarray,
    sigma: float,
    target_proportions: np.ndarray,
    rest: float,
) -> np.ndarray:
    """Targets as given, and the others sharing `rest` by their fostered proportions (arXiv 2411.11266, Algorithm 3)."""
    others = ~is_target
    moved = np.empty_like(proportions)
    moved[is_target] = target_proportions
    moved[others] = _normalised(proportions[others] * (1.0 + sigma * potential[others])) * rest
    return moved


def _names(observation: Observation, targets: Targets) -> str:
    chosen = _is_target(targets, len(observation.domains))
    return "+".join(domain for domain, is_target in zip(observation.domains, chosen, strict=True) if is_target)


def _rise_note(observation: Observation, targets: Targets, ceiling: float, raised: bool) -> str:
    names = _names(observation, targets)
    return f"{names} raised" if raised else f"no step for {names}, it is at its ceiling {ceiling:g}"
