"""Online peers of the paper's rule: online data mixing and dynamic batch loading, to compare with.

Both follow the losses seen during the run: online data mixing (arXiv 2312.02406) treats the domains as the arms of a
bandit and loss as their reward, dynamic batch loading (arXiv 2310.06694) raises the domains that are furthest above
their reference loss. Exponentials are taken of differences to the largest exponent, so that nothing overflows.
"""

import math
from dataclasses import dataclass

import numpy as np

from versatune_plugin.strategies.base import Decision, Observation, Strategy, known


def exploration(num_domains: int, update: int) -> float:
    """Exploration rate of an update, in [0, 1/num_domains]; 0 only for one domain (arXiv 2312.02406).

    eps_t = min(1/K, sqrt(ln K / (K t))), and eps_0 = 1/K. It stays at 1/K while t <= K ln K: for 6 domains the first
    10 updates are uniform, whatever the losses.

    Args:
        num_domains: K, >= 1.
        update: t, this update's number, from 1 on; 0 stands for before the first one.
    """
    if update == 0:
        return 1.0 / num_domains
    return min(1.0 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * update)))


def reward_estimates(
    estimates: np.ndarray, losses: np.ndarray, proportions: np.ndarray, alpha: float, floor: float
) -> np.ndarray:
    """Moving averages of the importance-weighted rewards, shape (num_domains,), >= 0 (arXiv 2312.02406).

    R_j = alpha * R_j + (1 - alpha) * loss_j / P_j. A proportion under the floor counts as the floor, which happens
    only where something else than the policy set it (the initial proportions, a guard): thus a proportion of 0
    divides nothing, and no estimate passes max(loss) / floor.

    Args:
        estimates: Before this update; 0 at the first one.
        losses: Of the draws since the last update, nats per target token, > 0.
        proportions: In force during those draws, each >= 0, sum 1.
        alpha: Weight of the past, in [0, 1).
        floor: Exploration rate of the last update, > 0.
    """
    rewards = np.asarray(losses, np.float64) / np.maximum(np.asarray(proportions, np.float64), floor)
    return alpha * np.asarray(estimates, np.float64) + (1.0 - alpha) * rewards


def policy(estimates: np.ndarray, update: int) -> np.ndarray:
    """Proportions of Exp3, shape (num_domains,), each >= eps_t, sum 1 (arXiv 2312.02406).

    P_j = (1 - K eps_t) * exp(eps_{t-1} R_j) / sum_i exp(eps_{t-1} R_i) + eps_t. The exponents are at most the largest
    loss so far, because an estimate is at most that loss over eps_{t-1}.

    Args:
        estimates: Reward estimates (R), finite, >= 0.
        update: t, this update's number, from 1 on.
    """
    num_domains = len(estimates)
    rate = exploration(num_domains, update)
    gibbs = _softmax(exploration(num_domains, update - 1) * np.asarray(estimates, np.float64))
    return (1.0 - num_domains * rate) * gibbs + rate


def exponential_ascent(proportions: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Next proportions, shape (num_domains,), sum 1 (arXiv 2310.06694, Algorithm 1).

    w_j = w_j * exp(gap_j), normalised; computed from logarithms, so that a gap of any size is safe. A proportion of
    0 stays 0, also one that underflowed to it: 745 nats behind the leader, summed over the updates, are below the
    smallest float (small steps get stuck just above it, around 1e-321). Where no domain has a gap the proportions
    come back bit for bit.

    Args:
        proportions: In force now, each >= 0, sum 1.
        gaps: Loss above the reference loss, max(loss - ref, 0), nats per target token, finite.
    """
    proportions = np.asarray(proportions, dtype=np.float64)
    gaps = np.asarray(gaps, dtype=np.float64)
    if (gaps == 0).all():
        return proportions.copy()
    logarithms = np.log(proportions, out=np.full_like(proportions, -np.inf), where=proportions > 0)
    return _softmax(logarithms + gaps)


def _softmax(exponents: np.ndarray) -> np.ndarray:
    """Exponentials, normalised to sum 1; at least one exponent is finite, the others may be -inf."""
    raised = np.exp(exponents - exponents.max())
    return raised / raised.sum()


@dataclass(frozen=True)
class ODM(Strategy):
    """Online data mixing: Exp3 over the domains, with their loss as reward (arXiv 2312.02406).

    What differs from the paper is what an update sees. There a turn draws one domain from the policy (or one per
    micro-batch), and the estimates of the drawn ones move. Here all domains are drawn between two updates, a turn is
    an update, and every estimate moves every time. So a seldom drawn domain adapts as fast as the others, there is no
    noise from which domain was drawn, and an estimate is a plain moving average of loss_j / P_j. Its weight 1/P_j no
    longer corrects for the chance of being seen, which is 1; it acts as a restoring force: at equal losses the domain
    with the smaller proportion gets the larger reward, and the policy settles where more loss means a larger share.

    As in the authors' code, warm-up updates count for the exploration rate but leave the estimates alone. Elsewhere
    the formulas are the paper's: in the code's final version (`SmoothedMeanWeightUpdater.group_update`) the rewards are
    exp(loss) without importance weights, and the estimates are normalised without the softmax.

    Two properties of the formulas that are easy to miss. The initial proportions are no part of the policy: after the
    warm-up they no longer count. And as the estimates are averages, not sums, the exponents eps_{t-1} R_j vanish with
    eps: the policy leaves uniform after K ln K updates and drifts back to it later. Constant losses of (10, 0.1, 1)
    give (0.57, 0.20, 0.24) at t = 50, (0.43, 0.28, 0.30) at 1,000 and (0.345, 0.327, 0.328) at 100,000.
    """

    alpha: float = 0.5
    """Weight of the past in the reward estimates, in [0, 1). 0.5 is the smoothing factor of the authors' last runs
    (alon-albalak/online-data-mixing, scripts/train_1B_ema_0.5smoothing.sh); their class has 0.9 as default."""
    warm_up: float = 0.02
    """Share of the run at whose updates the initial proportions stay, in [0, 1]. The authors' scripts have 2,000 of
    100,000 steps (same script and alon_configs/models/1B.yml)."""

    def decide(self, observation: Observation) -> Decision:
        """Proportions of the policy; those in force during the warm-up."""
        memory = observation.memory or {"estimates": [0.0] * len(observation.domains), "updates": 0}
        update = memory["updates"] + 1
        if observation.step <= self.warm_up * observation.num_steps:
            return Decision(proportions=observation.proportions, note="warm-up", memory={**memory, "updates": update})
        estimates = reward_estimates(
            memory["estimates"],
            known(observation.losses),
            observation.proportions,
            self.alpha,
            floor=exploration(len(observation.domains), update - 1),
        )
        is_even = exploration(len(observation.domains), update) * len(observation.domains) >= 1
        return Decision(
            proportions=policy(estimates, update),
            note="still exploring: even" if is_even else None,
            memory={"estimates": estimates.tolist(), "updates": update},
        )


@dataclass(frozen=True)
class DynamicBatchLoading(Strategy):
    """Dynamic batch loading: proportions rise with the loss above the reference loss (arXiv 2310.06694, Algorithm 1).

    The base of an update are the proportions in force, as in the authors' code, not the initial ones. The gap
    max(loss - ref, 0) is potential * loss, which differs from it by two roundings, 2.3e-16 of the gap.

    That code (princeton-nlp/LLM-Shearing, dynamic_loading_callback.py) departs from Algorithm 1 elsewhere: it does not
    cut negative gaps off at 0, and it mixes in 1e-4 of a uniform distribution. Here the algorithm holds; a floor on
    the proportions does what that mixing did.
    """

    needs_reference_losses = True
    keeps_zero = True

    def decide(self, observation: Observation) -> Decision:
        """Proportions raised where the loss is above its reference."""
        gaps = known(observation.potential) * known(observation.losses)
        return Decision(proportions=exponential_ascent(observation.proportions, gaps))
