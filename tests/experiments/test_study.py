import math

import pytest

from sfumato.experiments.equal_accuracy import equal_accuracy_error
from sfumato.experiments.study import compare_at_equal_accuracy

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


def lines(factor: float, jitter: float = 0.0) -> list[dict]:
    found = []
    for fold in range(5):
        wobble = 1 + jitter * (fold - 2)
        for noise, (accuracy, error) in zip((0.1, 0.2, 0.3), CURVE, strict=True):
            found.append(
                {
                    "defense": "noise",
                    "fold": fold,
                    "noise_std": noise,
                    "lam": 0.0,
                    "accuracy": accuracy,
                    "mse_test": error,
                }
            )
        found.append(
            {
                "defense": "noise+cem",
                "fold": fold,
                "noise_std": 0.1,
                "lam": 1.0,
                "accuracy": 0.97,
                "mse_test": 0.015 * factor * wobble,
            }
        )
    return found


def test_a_known_gain_is_found():
    found = compare_at_equal_accuracy(lines(1.5))
    assert found["overall"]["ratio"] == pytest.approx(1.5)
    assert found["overall"]["ci"] == pytest.approx([1.5, 1.5])
    (point,) = found["points"]
    assert point["curve_mse"] == pytest.approx(0.015)
    assert point["below_curve_se"] == 0.0


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """For errors that scale by 1 + jitter the log ratio's error is close to sd / (sqrt(n) mean)."""
    found = compare_at_equal_accuracy(lines(1.5, jitter=0.02))
    low, high = found["overall"]["ci"]
    spread = 0.02 * math.sqrt(2.5)  # standard deviation of -2..2 is sqrt(2.5)
    assert math.log(high / low) / (2 * 2.776) == pytest.approx(spread / math.sqrt(5), rel=0.02)


def test_settings_less_accurate_than_the_whole_curve_are_not_counted():
    found = lines(1.5)
    for line in [entry for entry in found if entry["defense"] == "noise+cem"]:
        found.append(line | {"lam": 9.0, "accuracy": 0.5, "mse_test": 1.0})
    compared = compare_at_equal_accuracy(found)
    assert compared["overall"]["ratio"] == pytest.approx(1.5)
    assert compared["overall"]["settings"] == 1
    assert [point["counted"] for point in compared["points"]] == [True, False]


def test_a_loss_is_shown_as_a_loss():
    found = compare_at_equal_accuracy(lines(0.8, jitter=0.01))
    assert found["overall"]["ratio"] == pytest.approx(0.8)
    assert found["points"][0]["below_curve_se"] > 2
