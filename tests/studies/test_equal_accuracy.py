"""Comparing at equal accuracy, by hand."""

import math

import pytest

from sfumato.studies.equal_accuracy import compare, equal_accuracy_error

CURVE = [(0.98, 0.01), (0.96, 0.02), (0.90, 0.03)]


def test_interpolation_by_hand():
    assert equal_accuracy_error(CURVE, 0.97) == pytest.approx(0.015)
    assert equal_accuracy_error(CURVE, 0.93) == pytest.approx(0.025)
    assert equal_accuracy_error(CURVE, 0.96) == pytest.approx(0.02)


def test_beyond_the_ends_the_nearest_end_counts():
    assert equal_accuracy_error(CURVE, 0.999) == pytest.approx(0.01)
    assert equal_accuracy_error(CURVE, 0.5) == pytest.approx(0.03)


def test_accuracy_that_rises_with_noise_is_pooled_in_favour_of_noise():
    wavy = [(0.96, 0.01), (0.98, 0.02), (0.90, 0.03)]  # the first two share 0.97
    assert equal_accuracy_error(wavy, 0.97) == pytest.approx(0.02)
    assert equal_accuracy_error(wavy, 0.99) == pytest.approx(0.02)
    assert equal_accuracy_error(wavy, 0.935) == pytest.approx(0.025)


def test_several_settings_are_averaged_as_logarithms_and_held_against_others():
    curve = [dict.fromkeys(range(3), point) for point in CURVE]
    double, half = (dict.fromkeys(range(3), (0.97, error)) for error in (0.03, 0.0075))
    assert compare(curve, double, half).effect == pytest.approx(1.0)
    assert compare(curve, double, double).effect == pytest.approx(2.0)
    assert compare(curve, double, against=[half]).effect == pytest.approx(4.0)
    assert compare(curve, double, higher_protects=False).effect == pytest.approx(0.03 - 0.015)
    assert compare(curve, {7: (0.97, 0.03)}) is None  # no seed in common
    assert compare(curve[:1], double) is None
    assert not compare(curve, dict.fromkeys(range(3), (0.5, 1.0))).within


def study(factor: float, jitter: float = 0.0):
    """Three levels of noise and a setting of CEM as accurate as 0.97, with `factor` times the curve's error there."""
    levels = [dict.fromkeys(range(5), point) for point in CURVE]
    return compare(levels, {fold: (0.97, 0.015 * factor * (1 + jitter * (fold - 2))) for fold in range(5)})


def test_a_known_gain_is_found():
    found = study(1.5)
    assert found.effect == pytest.approx(1.5)
    assert found.interval == pytest.approx((1.5, 1.5))
    assert found.curve_value == pytest.approx(0.015)
    assert study(0.8, 0.01).effect == pytest.approx(0.8, rel=1e-3)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """For errors that scale by 1 + jitter the log ratio's error is close to sd / (sqrt(n) mean)."""
    low, high = study(1.5, 0.02).interval
    spread = 0.02 * math.sqrt(2.5)  # standard deviation of -2..2 is sqrt(2.5)
    assert math.log(high / low) / (2 * 2.776) == pytest.approx(spread / math.sqrt(5), rel=0.02)


def test_one_fold_is_too_few():
    assert compare([{0: (0.9, 0.1)}, {0: (0.8, 0.2)}], {0: (0.9, 0.2)}).interval is None
