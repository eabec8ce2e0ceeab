"""Floors, means and standard errors, against numbers from scipy, scikit-learn and by hand."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from tune_worlds import measured

from sfumato.errors import ConfigError
from sfumato.studies import BASELINE, Floor, Setting, Space, Training
from sfumato.studies.equal_accuracy import non_increasing
from sfumato.studies.judge import Book, Measured
from sfumato.studies.tune_trials import selecting

SPACE = Space(noise_stds=(0.1,), lams=(0.5, 1.0), folds=2, baselines=1)
ONE = Setting(0.1, 0.5)


FIVE = Floor(lose_at_most=5.0)


def book(*, floor=FIVE, space=SPACE, **settings):
    """A book from {setting: [right per fold]} by keyword `none` (baseline) and `lam<x>`."""
    found = {}
    for name, folds in settings.items():
        setting = BASELINE if name == "none" else Setting(0.1, float(name[3:].replace("_", ".")))
        for fold, right in enumerate(folds):
            half = [index % 2 == 0 for index in range(len(right))]
            found[Training(setting, fold)] = measured(right, half)
    return Book(found, floor, space)


def test_the_standard_error_of_a_paired_loss_is_mcnemars():
    rng = np.random.default_rng(0)
    base, own = (rng.random((2, 4000)) < share for share in (0.97, 0.95))
    found = book(none=base.astype(float).tolist(), lam0_5=own.astype(float).tolist())
    loss = found.loss(ONE)
    b, c = int((base & ~own).sum()), int((~base & own).sum())
    count = base.size
    assert loss.mean == pytest.approx((b - c) / count, abs=1e-12)
    mcnemar = math.sqrt(b + c - (b - c) ** 2 / count) / count
    folds = [float(base[i].mean() - own[i].mean()) for i in range(2)]
    assert loss.error == pytest.approx(max(mcnemar, np.std(folds, ddof=1) / math.sqrt(2)), rel=1e-3)
    assert loss.images == count


def test_lucky_trainings_widen_the_standard_error():
    ones, worse = [1.0] * 100, [1.0] * 80 + [0.0] * 20
    found = book(none=[ones, ones], lam0_5=[ones, worse])
    assert found.loss(ONE).mean == pytest.approx(0.1)
    assert found.loss(ONE).error == pytest.approx(np.std([0.0, 0.2], ddof=1) / math.sqrt(2))  # not sqrt(.09 / 200)


def test_slack_is_what_is_left_of_the_floor_half_by_half():
    base = [[1.0, 1.0, 1.0, 0.0]] * 2
    own = [[1.0, 0.0, 1.0, 1.0]] * 2
    found = book(none=base, lam0_5=own)
    assert found.slack(ONE, "selecting").mean == pytest.approx(0.05)
    assert found.slack(ONE, "both").mean == pytest.approx(0.05)  # one lost, one won
    absolute = book(none=base, lam0_5=own, floor=Floor(accuracy_at_least=0.7))
    assert absolute.slack(ONE, "selecting").mean == pytest.approx(0.3)
    assert absolute.slack(ONE, "confirming").mean == pytest.approx(-0.2)


def test_repeated_baselines_are_averaged():
    space = Space(noise_stds=(0.1,), lams=(0.5, 1.0), folds=2, baselines=2)
    found = {Training(ONE, f): measured([1.0, 1.0], [True, False]) for f in range(2)}
    found |= {Training(BASELINE, f, r): measured([1.0 - r, 1.0], [True, False]) for f in range(2) for r in range(2)}
    one = Book(found, Floor(lose_at_most=1.0), space)
    assert one.accuracy(BASELINE) == 0.75
    assert one.loss(ONE).mean == pytest.approx(-0.25)


def test_a_strong_setting_that_beats_a_weaker_one_was_lucky():
    base = [[1.0] * 200] * 2
    weak, strong = [[1.0] * 180 + [0.0] * 20] * 2, [[1.0] * 200] * 2
    alone = book(none=base, lam1_0=strong)
    assert alone.passes(Setting(0.1, 1.0))
    both = book(none=base, lam0_5=weak, lam1_0=strong, floor=Floor(lose_at_most=4.0))
    assert not both.passes(Setting(0.1, 1.0))  # taken for the average of both, 5 points lost


def test_the_monotone_fit_is_isotonic_regression():
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 30):
        values, weights = rng.normal(size=size), rng.integers(1, 4, size)
        theirs = IsotonicRegression(increasing=False).fit_transform(np.arange(size), values, sample_weight=weights)
        assert non_increasing(values.tolist(), weights.tolist()) == pytest.approx(theirs.tolist())


def test_the_floor_is_confirmed_with_the_confidence_that_was_asked_for():
    """One setting exactly at the floor: it is confirmed as rarely as the confidence says, and no less rarely."""
    space = Space(noise_stds=(0.1,), lams=(0.5,), folds=2, baselines=1, confidence=0.9)
    generator = torch.Generator().manual_seed(0)
    confirmed = 0
    for _ in range(300):
        found = {}
        for fold in range(2):
            right = (torch.rand(400, generator=generator) < 0.9).double()
            half = torch.arange(400) % 2 == 0
            found[Training(ONE, fold)] = Measured(right, half, (0.02, 0.02))
            found[Training(BASELINE, fold)] = Measured(torch.ones(400, dtype=torch.float64), half, (0.02, 0.02))
        confirmed += Book(found, Floor(lose_at_most=10.0), space).confirmed(ONE)
    limit = 300 * 0.1 + norm.ppf(0.9999) * math.sqrt(300 * 0.1 * 0.9)
    assert 5 < confirmed < limit


def test_halves_are_halves_of_every_class():
    labels = torch.tensor([0] * 7 + [1] * 10 + [2] * 3)
    half = selecting(labels, seed=3)
    for label, count in ((0, 7), (1, 10), (2, 3)):
        assert int(half[labels == label].sum()) in (count // 2, count - count // 2)
    assert int(half.sum()) == 10
    assert not torch.equal(half, selecting(labels, seed=4))


def test_what_is_measured_survives_json():
    closed = {"test": {"mse": 0.15}, "converged": True, "reason": "", "history": [], "trivial_mse": None}
    record = {"draws": 5, "right": "035", "selecting": "101", "error_selecting": 0.1, "error_confirming": 0.2}
    record |= {"strongest": "nearest", "attacks": {"nearest": closed}, "leakage": {"identified": 0.5}}
    back = Measured.of(json.loads(json.dumps(record)))
    assert back.right.tolist() == [0.0, 0.6, 1.0]
    assert back.part("confirming").tolist() == [0.6]
    assert [back.error(half) for half in ("selecting", "confirming", "both")] == pytest.approx([0.1, 0.2, 0.4 / 3])
    assert (back.converged, back.strongest) == (True, "nearest")
    assert back.leakage == {"identified": 0.5}


def test_a_decoder_whose_history_still_fell_has_not_converged_whatever_was_said_of_it():
    decoder = {"test": {"mse": 0.1}, "converged": True, "reason": "", "history": [0.2, 0.15, 0.1], "trivial_mse": 0.3}
    half = torch.tensor([True, False])
    assert Measured(torch.ones(2), half, (0.1, 0.1), "decoder", {"decoder": decoder}).converged is False
    assert Measured(torch.ones(2), half, (0.1, 0.1)).converged is None


@pytest.mark.parametrize(
    ("lose", "least", "text"),
    [
        (-1.0, None, "give points of accuracy above 0 and below 100, such as 1"),
        (float("nan"), None, "lose_at_most is nan; give points"),
        (None, 97.0, "accuracy_at_least is 97; give a share above 0 and below 1, such as 0.97"),
        (1.0, 0.9, "give one floor"),
        (None, None, "give one floor"),
    ],
)
def test_floors_without_a_meaning_get_a_sentence(lose, least, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        Floor(lose, least)


def test_a_floor_in_words():
    assert Floor(lose_at_most=0.5).describe() == "lose at most 0.5 points of accuracy"
    assert Floor(lose_at_most=1).describe() == "lose at most 1 point of accuracy"
    assert Floor(accuracy_at_least=0.97).describe() == "accuracy of at least 97 %"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"noise_stds": ()}, "noise_stds is empty; give values to search, such as 0.05 0.15 0.4"),
        ({"lams": (0.1, -1.0)}, "lams holds -1; give values above 0"),
        ({"folds": 1}, "folds is 1; give at least 2"),
        ({"draws": 10}, "draws is 10; give a number below 10"),
        ({"baselines": 0}, "baselines is 0; give at least 1"),
        ({"confidence": 1.0}, "confidence is 1.0; give a number below 1"),
    ],
)
def test_spaces_without_a_meaning_get_a_sentence(values, text):
    with pytest.raises(ConfigError, match=text):
        Space(**values)
