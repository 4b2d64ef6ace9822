"""The benchmark's page says what the result files say: made-up numbers in, tables, intervals and sentences out."""

import json
from itertools import count

import comparisons
import numpy as np
import outcomes
import plans
import pytest
import sections
from comparisons import Comparison, corrected, interval, paired, said, verdict
from outcomes import Base, against, by_seed, frontier_degradation, measures
from page import ABOUT, TITLES, page, read_remarks, write_page
from plots import constant_points, short
from scipy import stats
from summary import summary

BEFORE = {"law": 4.0, "medicine": 5.0, "code": 2.0}
MIXTURE = {"law": 0.6, "medicine": 0.1, "code": 0.3}
NOISE = (0.0, 0.02, -0.01, 0.015, -0.02)  # by seed, what is common to all runs of a seed
RISE = (0.0, 0.01, -0.01, 0.005, -0.005)  # by seed, of what a dynamic rule makes others forget, as a share
OWN = (0.001, -0.001, 0.002, 0.0, -0.0015)  # by seed, what a run differs by


def make_run(name, seed, losses, accuracy=0.5, block=None, base="tiny-0", share=None):
    """A result file; `losses` in domain order, the checkpoint half way has lost half of the difference."""
    after = dict(zip(BEFORE, losses, strict=True))
    half = {domain: (loss + BEFORE[domain]) / 2 for domain, loss in after.items()}
    drawn = dict.fromkeys(BEFORE, 1 / 3) if share is None else {"law": 0.0, "medicine": share, "code": 1 - share}
    return {
        "base": base,
        "name": name,
        "seed": seed,
        "block": block or {"strategy": "versatune", "initial_proportions": "uniform"},
        "losses": after,
        "accuracy": dict.fromkeys(BEFORE, accuracy),
        "checkpoints": [{"step": 60, "losses": half}, {"step": 120, "losses": after}],
        "drawn": drawn,
        "proportions": drawn,
        "path": [],
        "tests": [],
        "seconds": 30.0,
    }


def make_base(runs, name="tiny-0", mixture=MIXTURE, settings=None):
    facts = {
        "name": name,
        "parameters": 2_600_000,
        "mixture": mixture,
        "detected": {"law": 0.5, "medicine": 0.2, "code": 0.3},
        "references": {"law": 3.0, "medicine": 4.0, "code": 1.5},
        "rows": dict.fromkeys(BEFORE, 900),
        "losses": BEFORE,
        "accuracy": dict.fromkeys(BEFORE, 0.3),
        "num_questions": dict.fromkeys(BEFORE, 100),
        "seconds": {"pretraining": 700.0, "detection": 40.0, "references": 90.0},
        "settings": settings or {"steps": 120},
    }
    by_name = {}
    for run in runs:
        by_name.setdefault(run["name"], {})[run["seed"]] = run
    return Base(facts, by_name)


def write_results(folder, bases):
    """As the laboratory leaves them."""
    numbers = count()
    for base in bases:
        (folder / base.name).mkdir(parents=True)
        planned = {name: block for part in plans.PARTS for name, block in plans.runs(part, base.name).items()}
        (folder / base.name / "base.json").write_text(json.dumps(base.facts))
        for runs in base.runs.values():
            place = folder / base.name / "runs" / str(next(numbers))
            place.mkdir(parents=True)
            for seed, run in runs.items():
                (place / f"{seed}.json").write_text(json.dumps({"asked": planned.get(run["name"])} | run))
    session = {"command": "python benchmarks/results.py", "began": "2026-11-02 10:00", "wall_seconds": 3600, "cores": 2}
    (folder / "machine.jsonl").write_text(json.dumps(session) + "\n")
    return folder


def fostered(shift, name, seeds=5, accuracy=0.5, **more):
    """Runs whose mean loss is `shift` away from that of shift 0 with the same seed, give or take OWN."""
    losses = ([v + NOISE[s] + shift + (OWN[s] if shift else 0) for v in (3.5, 4.5, 1.8)] for s in range(seeds))
    return [
        make_run(name, s, loss, accuracy + 0.01 * (s % 2) + (OWN[s] if shift else 0), **more)
        for s, loss in enumerate(losses)
    ]


def expanded(name, gain, rise, seeds=5, share=None, **more):
    """Runs that reduce the loss of medicine by `gain`, of 1, and raise both others by `rise`, give or take noise."""
    constant = name == "uniform" or name.endswith("specific") or ": share " in name
    rises = [rise * (1 + (0 if constant else RISE[s])) for s in range(seeds)]
    return [
        make_run(name, s, [4 * (1 + rises[s]), 5 * (1 - gain - OWN[s]), 2 * (1 + rises[s])], share=share, **more)
        for s in range(seeds)
    ]


CONSTANT_SHARES = [
    *expanded("uniform", 0.04, 0.0, share=1 / 3),
    *expanded("medicine: share 0.5", 0.06, 0.01, share=0.5),
    *expanded("medicine: share 0.9", 0.096, 0.05, share=0.9),
    *expanded("medicine: specific", 0.10, 0.10, share=1.0),
]


# --- statistics ----------------------------------------------------------------------------------------------


def test_the_interval_and_p_are_those_of_a_paired_t_test_over_the_seeds_both_have():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 1, 6), rng.normal(0, 1, 6)
    compared = paired(dict(enumerate(ours)), {9: 100.0, **dict(enumerate(theirs))})
    expected = stats.ttest_rel(ours, theirs)
    bounds = expected.confidence_interval(0.95)
    assert (compared.low, compared.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12)
    assert compared.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (compared.n, compared.mean) == (6, pytest.approx((ours - theirs).mean()))


def test_significant_is_exactly_an_interval_without_zero():
    for shift in np.linspace(-3, 3, 41):
        c = interval(np.array([0.4, -1.0, 0.3, 1.1, -0.2]) + shift)
        assert c.significant == (c.low > 0 or c.high < 0)


def test_one_seed_has_a_mean_but_no_interval_and_nan_does_not_count():
    one = interval([0.5, float("nan")])
    assert (one.mean, one.n, one.significant, verdict(one, True)) == (0.5, 1, False, "unknown")
    assert interval([]).n == 0


def test_equal_differences_tell_nothing_unless_they_are_exactly_0():
    for equal in ([0.25] * 3, [0.1 + 0.2, 0.3, 0.3]):
        c = corrected({"equal": interval(equal)})["equal"]
        assert (c.mean, c.mark, verdict(c, True)) == (pytest.approx(equal[0]), "", "unknown")
        assert np.isnan([c.low, c.high, c.p, c.holm]).all()
    zero = interval([0.0] * 3)
    assert (zero.low, zero.high, zero.p, verdict(zero, True)) == (0.0, 0.0, 1.0, "same")
    assert sections.ranged(interval([0.25] * 3), 2, n=3) == "0.25"


def test_holm_multiplies_the_smallest_p_most_and_never_falls():
    # sorted .01 .02 .03 .04 -> .04, .06, .06 (2 x .03), .06 (at least the one before)
    made = {name: Comparison(-1, -2, 0, p, 5) for name, p in {"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02}.items()}
    made["single"] = interval([1.0])
    found = corrected(made)
    assert [found[name].holm for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert [found[name].mark for name in "abcd"] == ["**", "*", "*", "*"]
    assert np.isnan(found["single"].holm)


def test_words_follow_the_sign_and_what_is_better():
    made = {"down": Comparison(-1, -2, -0.1, 0.04, 5, 0.2), "up": Comparison(1, 0.9, 1.1, 1e-4, 5, 1e-3)}
    made |= {"flat": Comparison(0.1, -1, 1, 0.5, 5, 0.5)}
    assert said(made, True, "uniform") == (
        "significantly better than uniform: down; significantly worse: **up**; no difference shown: flat."
    )
    assert said(made, False, "uniform").startswith("significantly better than uniform: **up**; significantly worse")


# --- expansion -----------------------------------------------------------------------------------------------


def test_gain_and_degradation_are_relative_to_before_and_improvement_counts_as_none():
    after = {"law": 4.4, "medicine": 4.5, "code": 1.8}
    assert outcomes.gain(BEFORE, after, "medicine") == pytest.approx(0.1)
    assert outcomes.degradation(BEFORE, after, "medicine") == pytest.approx((0.1 + 0) / 2)
    assert outcomes.changes(BEFORE, after, "medicine") == pytest.approx([0.1, -0.1])


def test_the_frontier_is_interpolated_without_the_points_that_another_share_beats():
    points = [(0.0, 0.0), (0.10, 0.10), (0.05, 0.01), (0.04, 0.09)]  # the last gains less and degrades more
    assert frontier_degradation(points, 0.025) == pytest.approx(0.005)
    assert frontier_degradation(points, 0.075) == pytest.approx(0.055)
    assert frontier_degradation(points, 0.2) == 0.10
    assert np.isnan(frontier_degradation(points, -0.01))
    assert np.isnan(frontier_degradation(points[:1], 0.0))
    assert frontier_degradation([(0.04, 0.0), (0.06, 0.0), (0.1, 0.1)], 0.05) == 0.0
    assert np.isnan(frontier_degradation([], 0.0))


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.098, "90 % and 100 %"),
        (0.08, "50 % and 90 %"),
        (0.05, "uniform and 50 %"),
        (0.12, "100 %, flat"),
        (0.01, "-"),
    ],
)
def test_beyond_names_the_constant_shares_it_was_interpolated_between(gain, expected):
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", gain, 0.06)])
    assert sections.between(base, "medicine", "medicine: versatune") == expected
    assert f" | {expected} | - | " in sections.expansion_of(base, "medicine")


def test_the_page_says_whom_the_straight_line_and_the_flat_end_favour():
    about = ABOUT["One domain raised above the others"]
    assert all(words in about for words in ("convex", "favours the rule", "favours the shares"))


def test_kept_less_and_beyond_compare_with_runs_of_the_same_seed():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, 0.06)])
    of = measures("medicine")
    run = base.runs["medicine: versatune"][0]
    assert of["kept"](base, run) == pytest.approx((0.098 + OWN[0]) / (0.10 + OWN[0]))
    assert of["less"](base, run) == pytest.approx(0.4)
    # half way between the shares 0.9 (gain .096, rise .05) and 1 (.10, .10): the frontier's rise is .075
    assert of["beyond"](base, run) == pytest.approx(0.06 - 0.075)
    assert np.isnan(of["kept"](base, {**run, "seed": 77}))


@pytest.mark.parametrize(("rise", "where"), [(0.06, "better"), (0.09, "worse"), (0.075, None)])
def test_words_say_which_rules_lie_above_the_frontier(rise, where):
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, rise)])
    if where is None:  # around the frontier: some seeds above it, some below
        for seed, run in base.runs["medicine: versatune"].items():
            run["losses"]["law"] *= 1 + (-1) ** seed / 50
    words = sections.frontier_words(base, "medicine")[0]
    expected = {
        "better": "better than constant shares: **versatune**; significantly worse: none",
        "worse": "better than constant shares: none; significantly worse: **versatune**",
        None: "no difference shown: versatune",
    }
    assert expected[where] in words
    assert "at least 95 % of the gain: 90 % constant" + (", versatune." if rise == 0.06 else ".") in words


def test_a_rule_that_gains_less_than_every_constant_share_has_no_place_on_the_frontier():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.01, 0.0)])
    assert "without a place on the frontier: versatune." in sections.frontier_words(base, "medicine")[0]


def test_the_expansion_table_has_shares_gains_and_the_papers_figure():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, 0.06, share=0.8)])
    lines = {line.split(" | ")[0]: line for line in sections.expansion_of(base, "medicine").splitlines()}
    ours = lines["| versatune"]
    assert ours.startswith("| versatune | 5 | 80.0 | 9.81 (0.14) | 98.0 [98.0, 98.0] | 6.00 (0.05) | 40.0 [39.4, 40.6]")
    assert "| -1.50 [-1." in ours
    assert ours.endswith("** | 90 % and 100 % | - | yes |")
    assert lines["| specific"].endswith("|  |  | - | no |")
    assert lines["| 50 % constant"].split(" | ")[4].startswith("60.")


def test_the_expansion_table_counts_the_updates_at_which_the_test_held():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, 0.06, seeds=2)])
    tests = [[0.1, 0.2, True], [0.2, 0.2, False], [0.3, 0.2, False], [0.0, 0.1, False]]  # the last at the ceiling
    base.runs["medicine: versatune"][0]["tests"] = tests
    base.runs["medicine: versatune"][1]["tests"] = [[0.1, 0.2, True]] * 3 + [[0.2, 0.1, False]]
    (line,) = [line for line in sections.expansion_of(base, "medicine").splitlines() if line.startswith("| versatune")]
    assert "| 2.5 of 4 |" in line


# --- fostering, sensitivity, ablations -----------------------------------------------------------------------


def test_differences_are_paired_and_weighted_by_the_bases_own_mixture():
    base = make_base([*fostered(0.0, "uniform"), *fostered(-0.05, "versatune")])
    found = against(base, ["uniform", "versatune"], "uniform", outcomes.mean_loss)
    assert list(found) == ["versatune"]
    assert found["versatune"].mean == pytest.approx(-0.05 + np.mean(OWN))
    assert found["versatune"].high - found["versatune"].low < 0.005 < np.std(NOISE)
    weighted = by_seed(base, "uniform", outcomes.weighted_loss)[0]
    assert weighted == pytest.approx(0.6 * 3.5 + 0.1 * 4.5 + 0.3 * 1.8)


def test_fewer_seeds_show_their_n_and_a_run_that_broke_is_no_pair():
    broken = fostered(-0.05, "versatune", seeds=4)
    broken[0]["losses"]["law"] = float("nan")
    base = make_base([*fostered(0.0, "uniform"), *broken])
    compared, losses, _ = [
        line for line in sections.fostering_of(base).splitlines() if line.startswith("| versatune |")
    ]
    assert compared.startswith("| versatune | 4 | -0.0497 [")  # -.05 and the mean of OWN of seeds 1 to 3
    assert "(n = 3)" in compared
    assert losses.startswith("| versatune | 4 | - | 4.45")
    assert "- (-)" in losses


def test_without_uniform_or_a_known_mixture_nothing_is_made_up():
    assert "has not run" in sections.fostering_of(make_base(fostered(0.0, "constant")))
    base = make_base([*fostered(0.0, "uniform"), *fostered(-0.05, "versatune")], name="SmolLM2", mixture=None)
    assert "own mixture:" not in sections.fostering_of(base)


def test_relative_accuracy_stands_beside_the_papers_figures():
    base = make_base([*fostered(0.0, "constant"), *fostered(-0.05, "versatune", accuracy=0.6)])
    (line,) = [line for line in sections.published([base]).splitlines() if line.startswith("| versatune - constant")]
    assert line.endswith("| +11.20 % |")
    assert "| +10.0 [+9.8, +10.2] * |" in line
    assert "+19.9 [" in line  # mean of .60/.50 and .61/.51, three to two, minus 1, and of OWN/.5


def test_sensitivity_compares_every_value_with_the_default_whose_value_it_names():
    block = {"strategy": "versatune", "initial_proportions": "uniform", "reference_losses": dict(BEFORE)}
    expand = block | {"expansion": {"domain": "medicine"}}
    base = make_base(
        [
            *fostered(0.0, "versatune from uniform", block=block | {"sigma": 0.75}),
            *fostered(0.03, "sigma 2.0"),
            *fostered(-0.03, "sigma 0.25", seeds=3),
            *CONSTANT_SHARES,
            *expanded("medicine: versatune", 0.08, 0.05, block=expand),
            *expanded("delta 0.2", 0.09, 0.06, block=expand),
        ]
    )
    text = sections.sensitivity([base])
    assert text.startswith("**delta** (one domain raised above the others)")
    delta, sigma = (part.splitlines() for part in text.split("**sigma**"))
    assert [line.split(" | ")[0] for line in sigma if line.startswith("| ") and "tiny" in line] == [
        "| 0.25",
        "| 0.75",
        "| 2",
    ]
    assert "mean loss: significantly better than the default: **sigma 0.25**" in text
    assert "**sigma 0.25**; significantly worse: **sigma 2.0**" in text
    assert any(
        line.startswith("| 0.05 | tiny-0, medicine | 5") and line.endswith("default | default |") for line in delta
    )
    assert any(line.startswith("| 0.2 | tiny-0, medicine | 5 | 90.") and "| -10.0 [" in line for line in delta)


def test_every_base_has_its_own_target_and_default_in_the_sensitivity_table():
    block = {"strategy": "versatune", "initial_proportions": "uniform", "reference_losses": dict(BEFORE)}
    first = [*expanded("medicine: versatune", 0.08, 0.05), *expanded("delta 0.2", 0.09, 0.06)]
    second = [*expanded("law: versatune", 0.08, 0.05), *expanded("delta 0.2", 0.09, 0.06)]
    for target, runs in (("medicine", first), ("law", second)):
        for run in runs:
            run["block"] = block | {"expansion": {"domain": target}}
    for run in second:  # law gains what medicine did, and the other way round
        run["losses"] = {"law": 4 * (1 - 0.09), "medicine": 5 * 1.06, "code": 2 * 1.06}
    specific = expanded("law: specific", 0.1, 0.1)
    for run in specific:
        run["losses"] = {"law": 4 * (1 - 0.1), "medicine": 5 * 1.1, "code": 2 * 1.1}
    bases = [make_base([*CONSTANT_SHARES, *first]), make_base([*specific, *second], "tiny-1")]
    text = sections.sensitivity(bases)
    assert "| 0.2 | tiny-0, medicine | 5 | 90." in text
    assert "| 0.2 | tiny-1, law | 5 | 90.0 (0.0) | 40.0 (0.0) |" in text
    assert "| 0.05 | tiny-1, law | 5 | 90.0 (0.0) | 40.0 (0.0) | default | default |" in text
    alone = sections.sensitivity([bases[0], make_base([run for run in second if "delta" in run["name"]], "tiny-1")])
    assert "tiny-1, law: `law: versatune` has not run" in alone


def test_ablations_are_compared_with_the_default_and_with_uniform():
    base = make_base(
        [*fostered(0.0, "uniform"), *fostered(-0.02, "versatune from uniform"), *fostered(-0.01, "noise-aware")]
    )
    text = sections.ablations([base])
    assert "mean loss: significantly better than versatune from uniform: none; significantly worse" in text
    assert "mean loss: significantly better than uniform: **noise-aware**" in text


# --- summary and page ----------------------------------------------------------------------------------------


def fostering_base(shift, name="tiny-0"):
    """VersaTune from uniform moved by `shift` against uniform; dynamic better than constant as shift is negative."""
    return make_base(
        [
            *fostered(0.0, "uniform"),
            *fostered(0.04, "constant"),
            *fostered(0.04 + shift, "versatune"),
            *fostered(shift, "versatune from uniform"),
        ],
        name,
    )


def test_the_summary_praises_only_what_is_shown():
    text = summary([fostering_base(-0.01), fostering_base(-0.01, "tiny-1")])
    assert "is never significantly worse than uniform, and significantly better than uniform on tiny-0, tiny-1." in text
    assert "equally: significantly better on tiny-0 (-0.0099 nats" in text
    bought, not_bought = text.split("**What it does not buy, or not on every base**")
    assert "VersaTune from a uniform start against plain uniform, loss" in bought
    assert "VersaTune from the detected mixture against uniform, loss" in not_bought
    assert "shown on every base: versatune better than constant in loss" in text
    assert "the opposite shows on every base: versatune better than uniform in loss" in text


def test_the_summary_recommends_uniform_where_versatune_is_worse_or_not_shown_to_differ():
    worse = summary([fostering_base(0.01), fostering_base(-0.01, "tiny-1")])
    assert "is significantly worse than uniform on tiny-0: uniform is the safe choice" in worse
    assert "VersaTune from a uniform start against plain uniform, loss" in worse.split("**What it does not buy")[1]
    assert "- Nothing compared here is significantly better on every base." in worse
    assert "not shown on every base: versatune better than constant in loss" in worse
    same = summary([make_base([*fostered(0.0, "uniform"), *fostered(1e-5, "versatune from uniform")])])
    assert "is not shown to differ from uniform" in same


def test_a_base_that_cannot_say_is_named_beside_one_that_is_better():
    single = make_base(
        [*fostered(0.0, "uniform", seeds=1), *fostered(0.1, "versatune from uniform", seeds=1)], "tiny-1"
    )
    text = summary([fostering_base(-0.01), single])
    assert f"significantly better than uniform on tiny-0; on tiny-1: {comparisons.UNKNOWN}" in text
    assert "never significantly worse" not in text
    alone = summary([single])
    assert f"{comparisons.UNKNOWN} about `versatune from uniform` against uniform on tiny-1." in alone
    assert "take uniform" not in alone
    same = make_base([*fostered(0.0, "uniform"), *fostered(1e-5, "versatune from uniform")])
    assert f"not shown to differ from uniform on tiny-0 (tiny-1: {comparisons.UNKNOWN}); " in summary([same, single])


@pytest.mark.parametrize(("rise", "advice"), [(0.055, "take: versatune."), (0.075, "take a constant share (90 % con")])
def test_the_summary_recommends_a_dynamic_rule_only_above_the_frontier(rise, advice):
    text = summary([make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, rise)])])
    assert advice in text
    claim = "expansion with 38.77 % less degradation at nearly the same gain"
    assert (f"; shown on every base: {claim}" in text or f": shown on every base: {claim}" in text) == (rise == 0.055)


def test_a_rule_is_recommended_only_if_it_stays_above_the_frontier_after_correction():
    runs = {"medicine: versatune": 0.055, "medicine: high start": 0.075}
    base = make_base([*CONSTANT_SHARES, *(run for name, rise in runs.items() for run in expanded(name, 0.098, rise))])
    for name in runs:
        for seed, run in base.runs[name].items():
            run["losses"]["law"] *= 1 + (seed - 2) / 60  # p = 0.03 and 1, doubled
    assert sections.beyond(base, "medicine")["medicine: versatune"].mark == "*"
    assert "So for expansion no dynamic rule is shown to be worth its probe" in summary([base])
    alone = Base(base.facts, {name: runs for name, runs in base.runs.items() if name != "medicine: high start"})
    assert "So for expansion take: versatune." in summary([alone])


@pytest.mark.parametrize(
    ("third", "advice"),
    [(0.075, "better at most places and nowhere worse: versatune."), (0.095, "no dynamic rule is shown to be worth")],
)
def test_a_rule_that_is_better_at_most_places_is_said_to_be_unless_it_is_worse_at_one(third, advice):
    rises = {"tiny-0": 0.055, "tiny-1": 0.055, "tiny-2": third}  # constant shares at this gain: 0.075
    bases = [make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, r)], n) for n, r in rises.items()]
    text = summary(bases)
    assert advice in text
    assert "Significantly less degradation than constant shares at most of the 3 places: versatune at 2." in text


def test_a_rule_above_the_frontier_at_lower_gain_is_not_called_worthless():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.08, 0.01)])
    text = summary([base])
    assert (
        "at 95 % kept no dynamic rule is shown to be worth its probe here: take a constant share (90 % constant); "
        in text
    )
    assert "at lower gain these beat constant shares: versatune (80.0 % kept or more)." in text
    assert "So for expansion no dynamic rule" not in text


def test_a_rule_above_the_frontier_that_keeps_enough_but_avoids_too_little_is_not_said_to_gain_less():
    base = make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.0995, 0.07)])
    text = summary([base])
    assert "at 95 % kept these beat constant shares, but avoid less than the paper's figure: versatune." in text
    assert "at lower gain" not in text


def test_the_winner_is_found_by_pairs_not_by_means_over_other_seeds():
    lucky = fostered(0.01, "odm")[4:5]  # worse than uniform, but of the seed where all are low
    base = make_base([*fostered(0.0, "uniform"), *fostered(-0.002, "constant"), *lucky])
    assert by_seed(base, "odm", outcomes.mean_loss)[4] < 3.26  # constant: 3.2658 over all seeds
    assert "Lowest mean loss with all domains weighted equally: `constant` on tiny-0" in summary([base])


def test_one_seed_is_no_advice_and_rules_that_did_not_run_everywhere_are_named():
    runs = [*expanded("medicine: versatune", 0.098, 0.055), *expanded("medicine: start 0.9", 0.098, 0.055)]
    single = {name: {0: by_seed[0]} for name, by_seed in make_base([*CONSTANT_SHARES, *runs]).runs.items()}
    one = Base(make_base([]).facts, single)
    assert "Too little to say which rules are worth their probe: start 0.9, versatune." in summary([one])
    other = make_base([*CONSTANT_SHARES, *runs[:5]], "tiny-1")
    assert "Not run everywhere, so in none of the lists of everywhere: start 0.9." in summary([one, other])
    assert "Not run everywhere" not in summary([one])


def test_a_seed_that_specific_has_not_leaves_the_others_in_the_plot():
    base = make_base([*CONSTANT_SHARES])
    del base.runs["medicine: specific"][4]
    assert constant_points(base, "medicine")["medicine: share 0.9"] == pytest.approx([96.0, 50.0], abs=0.1)


def test_a_variant_stands_in_brackets_so_that_lists_can_be_read():
    assert short("medicine: held 0.6, test off") == "held 0.6 (test off)"
    assert (short("medicine: held 0.6"), short("medicine: share 0.98")) == ("held 0.6", "98 % constant")


HELD = ("held 0.6", "held 0.6, epsilon 1", "held 0.5")


@pytest.mark.parametrize(("better", "seeds"), [(None, 5), ("held 0.6", 5), (None, 1)])
def test_the_summary_says_whether_the_schedule_helps_or_the_test(better, seeds):
    runs = expanded("medicine: held 0.6, test off", 0.098, 0.055)
    for name in HELD:
        made = expanded(f"medicine: {name}", 0.098, 0.045 if name in (better, "held 0.5") else 0.055, seeds=seeds)
        for run in made:
            run["losses"]["law"] *= 1 + OWN[(run["seed"] + 1) % 5]
        runs += made
    text = summary([make_base([*CONSTANT_SHARES, *runs])])
    assert "held 0.6 (test off: a pure schedule)" in text
    helps = "what helps is the schedule (high early, down late), not the measured test" in text
    assert helps == (better is None and seeds == 5)
    assert ("after correction too: held 0.6 in degradation of medicine on tiny-0 (-0.99" in text) == bool(better)
    assert (f"{comparisons.UNKNOWN} whether the schedule" in text) == (seeds == 1)
    assert "held 0.5 in degradation" not in text  # another schedule


def test_runs_that_the_test_did_not_change_at_all_are_counted_as_equal():
    runs = [run for name in ("held 0.6", "held 0.6, test off") for run in expanded(f"medicine: {name}", 0.098, 0.055)]
    text = summary([make_base([*CONSTANT_SHARES, *runs])])
    assert "after correction (2 of them equal to the last digit); what helps is the schedule" in text


def test_files_of_runs_that_are_not_planned_or_under_another_block_are_left_out_and_counted(tmp_path):
    runs = [*fostered(0.0, "uniform"), *fostered(0.1, "an old rule", seeds=2), *fostered(0.2, "constant", seeds=1)]
    runs[-1]["asked"] = {"strategy": "manual"}
    real = make_base([*fostered(0.0, "uniform"), *fostered(0.0, "odm")], "SmolLM2-135M", None)
    folder = write_results(tmp_path, [make_base(runs), real])
    _, (tiny, model), _ = outcomes.load(folder)
    assert (list(tiny.runs), list(model.runs)) == (["uniform"], ["uniform"])
    text = page(folder, tmp_path / "results", {})
    assert "3 run files left out, not planned (so) any more: `an old rule`, `constant`." in text
    assert "5 run files left out, not planned (so) any more: `odm`." in text


def test_settings_of_every_kind_are_shown_and_what_the_rows_are(tmp_path):
    settings = {"prompt_tokens": 32, "output_tokens": 16, "lora": False, "pretraining": {"steps": 300}}
    settings |= {"model": "/somewhere/of/mine/SmolLM2-135M", "data": "a1b2c3"}
    text = sections.base_facts(make_base([], settings=settings))
    assert "Rows are cut to 48 tokens (32 of the prompt, 16 of the output). A seed changes only the order of" in text
    assert "lora False, pretraining steps 300, model SmolLM2-135M, data a1b2c3." in text
    assert "/somewhere" not in text
    assert "model" not in sections.base_facts(make_base([], settings=settings | {"model": None}))


def test_commands_share_their_facts_and_show_no_folders_of_the_machine():
    session = {"cpu": "Some CPU", "began": "2026-11-02 10:00", "wall_seconds": 3600, "commit": "a"}
    sessions = [
        session | {"command": "python benchmarks/results.py --data /home/me/data --output=/tmp/out"},
        session | {"command": "python benchmarks/results.py --seeds 3", "commit": "b"},
    ]
    assert sections.commands(sessions) == [
        "- cpu Some CPU",
        "- 2026-11-02 10:00: `python benchmarks/results.py --data data --output=out` (1.00 h; commit a)",
        "- 2026-11-02 10:00: `python benchmarks/results.py --seeds 3` (1.00 h; commit b)",
    ]


def test_the_page_has_every_section_and_its_plots_exist(tmp_path):
    bases = [
        make_base([*CONSTANT_SHARES, *expanded("medicine: versatune", 0.098, 0.06)]),
        make_base(
            [*fostered(0.0, "uniform", seeds=1), *fostered(-0.1, "versatune from uniform", seeds=1)],
            "SmolLM2-135M",
            None,
        ),
    ]
    folder = write_results(tmp_path / "output", bases)
    arms = [
        {"name": "odm", "seconds": 12.5, "steps": 120, "mean_loss": 3.1, "losses": {"law": 3.0}, "notes": ["broke"]}
    ]
    (folder / "peers.json").write_text(json.dumps({"arms": arms, "machine": {}}))
    remarks = tmp_path / "remarks.md"
    remarks.write_text("## Ablations\n\nNone of them helped.\n")
    path = write_page(folder, tmp_path / "page" / "RESULTS.md", remarks)
    text = path.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(TITLES)
    assert "- 2026-11-02 10:00: `python benchmarks/results.py` (1.00 h)" in text
    assert "- cores 2\n" in text
    assert "Detected and true mixture are 0.100 apart" in text
    assert "## Ablations\n\nNot run: no results were found.\n\nNone of them helped." in text
    assert "| odm | 12.5 | 120 | 3.1000 | 3.0000 |\n\n- odm: broke" in text
    images = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert images == ["results/frontier-medicine-tiny-0.png", "results/checkpoints-medicine-tiny-0.png"]
    assert all((path.parent / image).read_bytes().startswith(b"\x89PNG") for image in images)
    assert "nan" not in text


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    text = page(tmp_path, tmp_path / "results", {})
    assert text.count("Not run: no results were found.") == 6
    assert "Nothing has run yet." in text


def test_null_losses_are_read_as_not_known(tmp_path):
    runs = fostered(0.0, "uniform")
    runs[0]["losses"]["law"] = None
    _, (base,), peers = outcomes.load(write_results(tmp_path, [make_base(runs)]))
    assert np.isnan(by_seed(base, "uniform", outcomes.mean_loss)[0])
    assert peers is None
    assert comparisons.interval(by_seed(base, "uniform", outcomes.mean_loss).values()).n == 4


def test_remarks_for_a_section_that_does_not_exist_are_an_error():
    with pytest.raises(ValueError, match=r"has not: \['Abblations'\]"):
        read_remarks("## Abblations\n\ntext")
