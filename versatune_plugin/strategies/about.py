"""What a user wants to know of each strategy: what it does, where it comes from, when to take it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class About:
    """A strategy in a line."""

    rule: str
    """How it sets the proportions."""
    source: str
    """Where it is described."""
    when: str
    """When to take it."""


_VERSATUNE = "arXiv 2411.11266"
_DMT = "arXiv 2310.05492, section 3.5"

ABOUT = {
    "versatune": About(
        rule="P_j * (1 + sigma * potential_j), normalised, at every update; with `expansion:` the target's share also "
        "rises by delta while the others' forgetting stays below epsilon * potential",
        source=f"{_VERSATUNE}, Algorithm 2; Algorithm 3",
        when="several domains matter; or one should grow and the others stay",
    ),
    "uniform": About(rule="1/k", source=f"{_VERSATUNE}, Table 1", when="the baseline that is hard to beat"),
    "proportional": About(rule="by number of rows", source="-", when="what plain concatenation does"),
    "temperature": About(
        rule="rows_j ** (1 / `temperature`), normalised",
        source="mT5, arXiv 2010.11934, section 3.2",
        when="sizes are far apart: between `proportional` and `uniform`",
    ),
    "unimax": About(
        rule="1/k, but no domain more than `guards.max_passes` times (default 4); what it leaves goes to the "
        "others, evenly",
        source="arXiv 2304.09151, Algorithm 1",
        when="sizes are far apart, and the small domains should not be repeated too often",
    ),
    "manual": About(rule="yours, in `initial_proportions`", source="-", when="you know what you want"),
    "constant": About(
        rule="`initial_proportions`, never changed",
        source=f"{_VERSATUNE}, Table 4",
        when="to tell what the start does from what the updates do",
    ),
    "inverse": About(
        rule="1 / `initial_proportions`, never changed",
        source=f"{_VERSATUNE}, Table 1",
        when="more of what the model knows least",
    ),
    "specific": About(
        rule="the target alone; or a constant share of it, the rest as in `initial_proportions` (here even by default)",
        source=f"{_VERSATUNE}, section 5",
        when="the upper bound of the target's gain, and of forgetting",
    ),
    "increase_uniform": About(
        rule="the target up by delta at every update, the rest even",
        source=f"{_VERSATUNE}, section 5",
        when="to compare expansion with; needs no losses",
    ),
    "increase_unconditional": About(
        rule="as `versatune` with `expansion:`, but the target rises at every update",
        source=f"{_VERSATUNE}, section 5",
        when="to tell what the test is worth",
    ),
    "multitask": About(
        rule="all rows of all domains, mixed", source=_DMT, when="the one-stage baseline of the staged ones"
    ),
    "sequential": About(
        rule="one domain after another, the general one last",
        source=_DMT,
        when="to see how much order alone forgets",
    ),
    "mixed_sequential": About(
        rule="the specialised domains mixed, then the general one", source=_DMT, when="general ability matters most"
    ),
    "dmt": About(
        rule="as `mixed_sequential`, with a share kappa of the specialised rows in the second stage",
        source=_DMT,
        when="general ability matters most, and the first stage should be forgotten less",
    ),
    "odm": About(
        rule="Exp3, a bandit: softmax of moving averages of loss / P_j, no domain below an exploration floor",
        source="arXiv 2312.02406",
        when="there are no reference losses and no held-out rows",
    ),
    "dynamic_batch_loading": About(
        rule="P_j * exp(max(loss_j - reference_j, 0)), normalised",
        source="arXiv 2310.06694, Algorithm 1",
        when="you want a sharper rule than `versatune`: give it a `guards.floor`",
    ),
}
"""By name, in the order of `STRATEGIES`."""
