"""Means, paired gains and their intervals."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from lowshot_hallucination.protocol.intervals import Interval, find_gain, find_interval


def test_the_interval_over_draws_is_students():
    values = np.random.default_rng(0).normal(50, 2, 10)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = find_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_the_gain_is_that_of_a_paired_test():
    random = np.random.default_rng(1)
    draws = random.normal(0, 5, 10)
    ours, theirs = 52 + draws + random.normal(0, 0.3, 10), 50 + draws
    low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
    mean, half = find_gain(ours, theirs)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half < find_interval(ours).half / 5  # draws that are hard for both cancel


def test_seeds_that_differ_widen_the_interval_though_draws_agree():
    values = np.array([[1.0, 1.1, 0.9], [3.0, 3.1, 2.9], [5.0, 5.1, 4.9]])
    low, _ = ttest_1samp(values.mean(1), 0).confidence_interval(0.95)
    mean, half = find_interval(values)
    assert mean == pytest.approx(3)
    assert half == pytest.approx(3 - low, rel=0.01)


def test_intervals_hold_the_true_mean_about_95_times_in_100():
    """Over seeds and draws that both matter."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        values = (
            random.normal(0, 1, (5, 1)) + random.normal(0, 2, 10) + random.normal(0, 1, (5, 10))
        )
        mean, half = find_interval(values)
        held += abs(mean) <= half
    assert 0.91 <= held / 400 <= 0.99


def test_a_method_without_training_stands_against_every_seed():
    ours = np.random.default_rng(3).normal(0, 1, (3, 10))
    theirs = np.arange(10.0)
    assert find_gain(ours, theirs) == find_interval(ours - theirs)
    assert find_gain(theirs, ours).mean == -find_gain(ours, theirs).mean


def test_one_value_has_no_interval_and_equal_ones_a_width_of_0():
    mean, half = find_interval(np.array([3.0]))
    assert mean == 3
    assert math.isnan(half)
    assert str(Interval(mean, half)) == "3.0"
    assert str(find_interval(np.full((2, 4), 7.0))) == "7.0 ± 0.0"


@pytest.mark.parametrize(
    ("shape", "message"), [((4,), "draws cannot be paired"), ((2, 5), "3 seeds against|same seeds")]
)
def test_methods_that_cannot_be_paired_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        find_gain(np.zeros((3, 5)), np.zeros(shape))
