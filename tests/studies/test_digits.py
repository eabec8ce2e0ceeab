"""Comparing at equal accuracy: by hand, and in the study on the digits."""

import json
import math

import pytest
from experiment_data import filled

from sfumato.studies import Store
from sfumato.studies.ablation import compare_over_folds, digits_study
from sfumato.studies.equal_accuracy import compare, equal_accuracy_error
from sfumato.studies.plan import experiments_of, load_budget, load_spec
from sfumato.studies.presentation import present, save

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


def study(factor: float, jitter: float = 0.0, *more):
    """Three levels of noise and a setting of CEM as accurate as 0.97, with `factor` times the curve's error there."""
    levels = [(noise, dict.fromkeys(range(5), point)) for noise, point in zip((0.1, 0.2, 0.3), CURVE, strict=True)]
    errors = {fold: (0.97, 0.015 * factor * (1 + jitter * (fold - 2))) for fold in range(5)}
    return compare_over_folds(levels, [(0.1, 1.0, errors), *more])


def test_a_known_gain_is_found():
    found = study(1.5)
    assert found["overall"]["ratio"] == pytest.approx(1.5)
    assert found["overall"]["ci"] == pytest.approx([1.5, 1.5])
    (point,) = found["points"]
    assert point["curve_mse"] == pytest.approx(0.015)
    assert point["below_curve_se"] == 0.0
    assert [level["noise_std"] for level in found["noise_curve"]] == [0.1, 0.2, 0.3]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """For errors that scale by 1 + jitter the log ratio's error is close to sd / (sqrt(n) mean)."""
    low, high = study(1.5, 0.02)["overall"]["ci"]
    spread = 0.02 * math.sqrt(2.5)  # standard deviation of -2..2 is sqrt(2.5)
    assert math.log(high / low) / (2 * 2.776) == pytest.approx(spread / math.sqrt(5), rel=0.02)


def test_settings_less_accurate_than_the_whole_curve_are_not_counted():
    found = study(1.5, 0.0, (0.1, 9.0, dict.fromkeys(range(5), (0.5, 1.0))))
    assert found["overall"]["ratio"] == pytest.approx(1.5)
    assert found["overall"]["settings"] == 1
    assert [point["counted"] for point in found["points"]] == [True, False]


def test_a_loss_is_shown_as_a_loss():
    found = study(0.8, 0.01)
    assert found["overall"]["ratio"] == pytest.approx(0.8)
    assert found["points"][0]["below_curve_se"] > 2


def test_one_fold_is_too_few():
    assert compare_over_folds([(0.1, {0: (0.9, 0.1)}), (0.2, {0: (0.8, 0.2)})], [(0.1, 1.0, {0: (0.9, 0.2)})]) is None


def test_the_study_is_read_from_the_store_and_shown(tmp_path):
    """Two seeds of the smoke budget are two folds: noise alone loses accuracy, CEM gains half the error."""
    spec, budget = load_spec("digits"), load_budget("smoke")
    assert digits_study(spec, budget, Store(tmp_path / "empty")) is None
    assert save(present(spec, budget, {}, Store(tmp_path / "empty")), tmp_path, budget) == []

    def numbers(one):
        noise = one.train.noise_std
        return {
            "accuracy": 0.95 if one.train.cem else 1 - noise / 5,
            "mse": 0.03 if one.train.cem else 0.02 * noise / 0.25,
        }

    store = filled(tmp_path / "store", experiments_of(spec, budget, {}), numbers)
    shown = present(spec, budget, {}, store)
    assert shown.study["overall"]["folds"] == 2
    # Accuracy 0.95 is noise 0.25 on the line between 0.05 and 0.7, whose error is 0.02.
    assert shown.study["overall"]["ratio"] == pytest.approx(1.5)
    assert {run["defense"] for run in shown.study["runs"]} == {"noise", "noise+cem"}
    paths = save(shown, tmp_path / "out", budget)
    assert {path.name for path in paths} == {f"digits-smoke.{suffix}" for suffix in ("md", "json", "html")}
    assert json.loads(paths[1].read_text())["overall"]["settings"] == 6
