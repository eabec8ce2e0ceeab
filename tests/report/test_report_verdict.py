import pytest
from report_data import study

from sfumato.report.averages import average, error_text, group
from sfumato.report.verdict import demo_verdict, study_verdict


def headline(ratio: float, points: float) -> str:
    return demo_verdict({"mse_ratio": ratio, "accuracy_difference": points / 100}, {}, [], 9).headline


def test_a_gain_at_equal_accuracy():
    assert headline(2.68, 0.1) == (
        "At an accuracy within 0.1 points, the attacker's error on unseen digits is 2.7 times as large with CEM as "
        "with the same noise alone."
    )
    assert "1.27 times as large" in headline(1.266, -0.3)


@pytest.mark.parametrize(
    ("points", "said"), [(0.0, "0.1"), (0.11, "0.2"), (-0.3, "0.3"), (0.999, "1.0"), (-1.0, "1.0")]
)
def test_within_is_rounded_up_so_that_it_stays_true(points, said):
    assert f"within {said} points" in headline(2.0, points)


@pytest.mark.parametrize("ratio", [0.96, 1.0, 1.04])
def test_a_small_ratio_is_no_gain(ratio):
    text = headline(ratio, 0.1)
    assert text.startswith("CEM made no notable difference here: at an accuracy within 0.1 points")
    assert f"{ratio:.2f} times as large" in text


def test_a_loss_is_called_one():
    text = headline(0.8, 0.1)
    assert text.startswith("CEM did not help here: at an accuracy within")
    assert "0.80 times as large" in text


@pytest.mark.parametrize(
    ("ratio", "points", "beginning", "ending"),
    [
        (2.0, -3.24, "The attacker's error", "3.2 points lower. Part of this may simply be paid for in accuracy: "),
        (2.0, 1.5, "The attacker's error", "1.50 points higher. CEM is ahead on both counts."),
        (0.8, -1.04, "CEM did not help", "1.04 points lower. CEM is behind on both counts."),
        (0.8, 3.0, "CEM did not help", "3.0 points higher. Accuracy and error pull in opposite directions"),
        (1.0, -3.0, "CEM made no notable", "3.0 points lower. CEM costs accuracy here and gains nothing notable."),
        (1.0, 3.0, "CEM made no notable", "3.0 points higher. CEM is more accurate here at about the same error."),
    ],
)
def test_unequal_accuracy_is_said_first_hand(ratio, points, beginning, ending):
    text = headline(ratio, points)
    assert text.startswith(beginning)
    assert ending in text
    assert "within" not in text


def summary(noise: list[float], cem: list[float]) -> dict:
    share = average([0.97] * len(noise))
    return {
        "noise": {"mse_test": average(noise), "accuracy": share},
        "noise+cem": {"mse_test": average(cem), "accuracy": share},
    }


def notes(noise: list[float], cem: list[float], loose: int = 0) -> str:
    gain = {"mse_ratio": 2.0, "accuracy_difference": 0.0}
    return " ".join(demo_verdict(gain, summary(noise, cem), [None] * loose, 9).notes)


def test_notes_carry_the_numbers_and_their_spread():
    text = notes([0.008, 0.01], [0.02, 0.02])
    assert "Error (MSE) 0.0200 ± 0.0000 with CEM, 0.0090 ± 0.0014 with noise alone" in text
    assert "accuracy 97.0 ± 0.0 % and 97.0 ± 0.0 % (mean ± standard deviation over 2 seeds)" in text
    assert "may reverse" not in text


def test_a_difference_within_the_spread_is_said_to_be_so():
    assert "no larger than the spread over seeds" in notes([0.008, 0.012], [0.009, 0.014])


def test_one_seed_shows_no_spread():
    text = notes([0.009], [0.02])
    assert "One seed only" in text
    assert "±" not in text


def test_unconverged_attacks_weaken_the_verdict():
    assert "2 of 9 attacks had not converged: their errors are no evidence of safety" in notes([0.01], [0.02], 2)
    assert "converged" not in notes([0.01], [0.02])


def test_study_verdict_follows_the_interval():
    assert study_verdict(study(1.5, 1.25, 1.75)).headline == (
        "At equal accuracy CEM leaves the attacker 1.50 times the error of noise alone (95 % interval 1.25 to 1.75, "
        "5 folds over all 1,797 digits)."
    )
    assert study_verdict(study(1.1, 0.9, 1.3)).headline.startswith("No difference is shown")
    assert study_verdict(study(0.9, 0.7, 1.1)).headline.startswith("No difference is shown")
    assert study_verdict(study(0.8, 0.7, 0.9)).headline.startswith("CEM does worse than noise alone")


def test_study_notes_name_what_speaks_against_it():
    data = study()
    (note,) = study_verdict(data).notes
    assert note == "1 of 2 settings of CEM lie below the curve of noise alone, the worst by 2.3 standard errors."
    data["points"] = data["points"][:1]
    data["points"][0]["beyond_curve"] = True
    data["unconverged"] = 3
    text = " ".join(study_verdict(data).notes)
    assert "All 1 settings of CEM lie on or above" in text
    assert "1 of 1 settings are more accurate than noise of any strength" in text
    assert "3 attacks had not converged" in text


def test_averages_by_hand():
    mean = average([1.0, None, 3.0])
    assert mean is not None
    assert (mean.mean, mean.count) == (2.0, 2)
    assert mean.sd == pytest.approx(2**0.5)
    assert average([None]) is None
    assert average([0.0, 2.0]).mean == 1.0
    assert average([5.0]).sd is None
    assert list(group([{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}], "a", "b")) == [(2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("value", "like", "text"),
    [
        (0.0240049, None, "0.0240"),
        (0.0, None, "0.0000"),
        (0.0004, 0.0088, "0.0004"),
        (0.000123456, None, "0.000123"),
        (0.00001, 0.000123, "0.000010"),
    ],
)
def test_small_errors_keep_their_digits(value, like, text):
    assert error_text(value, like) == text
