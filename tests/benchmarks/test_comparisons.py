"""Paired t intervals over seeds, and Holm's correction."""

import numpy as np
import pytest
from comparisons import Comparison, corrected, interval, paired
from scipy import stats


def test_the_interval_and_p_are_those_of_a_paired_t_test_over_the_seeds_both_have():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1, 1, 6), rng.normal(0, 1, 6)
    compared = paired(dict(enumerate(ours)), {9: 100.0, **dict(enumerate(theirs))})
    expected = stats.ttest_rel(ours, theirs)
    bounds = expected.confidence_interval(0.95)
    assert (compared.low, compared.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12)
    assert compared.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (compared.n, compared.mean) == (6, pytest.approx((ours - theirs).mean()))


def test_marked_is_exactly_an_interval_without_zero():
    for shift in np.linspace(-3, 3, 41):
        c = interval(np.array([0.4, -1.0, 0.3, 1.1, -0.2]) + shift)
        assert bool(c.mark) == (c.low > 0 or c.high < 0)


def test_one_seed_has_a_mean_but_no_interval_and_nan_does_not_count():
    one = interval([0.5, float("nan")])
    assert (one.mean, one.n, one.mark) == (0.5, 1, "")
    assert interval([]).n == 0


def test_equal_differences_tell_nothing_unless_they_are_exactly_0():
    for equal in ([0.25] * 3, [0.1 + 0.2, 0.3, 0.3]):
        c = corrected({"equal": interval(equal)})["equal"]
        assert (c.mean, c.mark) == (pytest.approx(equal[0]), "")
        assert np.isnan([c.low, c.high, c.p, c.holm]).all()
    zero = interval([0.0] * 3)
    assert (zero.low, zero.high, zero.p, zero.mark) == (0.0, 0.0, 1.0, "")


def test_holm_multiplies_the_smallest_p_most_and_never_falls():
    # sorted .01 .02 .03 .04 -> .04, .06, .06 (2 x .03), .06 (at least the one before)
    made = {name: Comparison(-1, -2, 0, p, 5) for name, p in {"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02}.items()}
    made["single"] = interval([1.0])
    found = corrected(made)
    assert [found[name].holm for name in "abcd"] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert [found[name].mark for name in "abcd"] == ["**", "*", "*", "*"]
    assert np.isnan(found["single"].holm)
