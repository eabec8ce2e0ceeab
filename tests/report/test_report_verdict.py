import pytest
from report_data import compared

from sfumato.attacks import Convergence
from sfumato.report.averages import average, error_text, group
from sfumato.report.verdict import demo_verdict

SETTLED = [Convergence(True, "")] * 9
MORE, SAME, LESS = (1.5, 1.2, 1.8), (1.02, 0.9, 1.15), (0.7, 0.6, 0.8)
RARER, AS_OFTEN, OFTENER = (-0.2, -0.3, -0.1), (0.01, -0.05, 0.07), (0.2, 0.1, 0.3)


@pytest.mark.parametrize(
    ("ratio", "difference", "said"),
    [
        (
            MORE,
            RARER,
            "At equal accuracy CEM leaves the attacker 1.50 times the error of noise alone, and the digit among 359 is "
            "identified in 25.0 % of cases, with noise alone in 45.0 %.",
        ),
        (
            SAME,
            AS_OFTEN,
            "At equal accuracy noise alone does as well: CEM leaves the attacker 1.02 times its error, and the digit "
            "among 359 is identified in 25.0 % of cases, with noise alone in 24.0 %.",
        ),
        (
            LESS,
            OFTENER,
            "At equal accuracy CEM leaves the attacker only 0.70 times the error of noise alone, and the digit among "
            "359 is identified in 25.0 % of cases, with noise alone in 5.0 %.",
        ),
        (
            MORE,
            OFTENER,
            "At equal accuracy CEM leaves the attacker 1.50 times the error of noise alone, but the digit among 359 is "
            "identified in 25.0 % of cases, with noise alone in 5.0 %.",
        ),
        (
            MORE,
            AS_OFTEN,
            "At equal accuracy CEM leaves the attacker 1.50 times the error of noise alone, but the digit among 359 is "
            "identified in 25.0 % of cases, with noise alone in 24.0 %, which is no difference.",
        ),
        (
            SAME,
            RARER,
            "At equal accuracy noise alone leaves the attacker as large an error as CEM (1.02 times), but the digit "
            "among 359 is identified in 25.0 % of cases, with noise alone in 45.0 %.",
        ),
    ],
)
def test_the_headline_says_both_measures_and_claims_nothing_within_an_interval(ratio, difference, said):
    assert demo_verdict(compared(ratio, difference), SETTLED, images=359).headline == said


def test_the_notes_carry_the_numbers_and_their_intervals():
    (note,) = demo_verdict(compared(MORE, RARER), SETTLED, images=359).notes
    assert note == (
        "At 97.3 % accuracy: error (MSE) 0.0240 with CEM, 0.0120 interpolated along noise alone; 95 % interval of the "
        "ratio 1.20 to 1.80, of the difference in identification -30.0 to -10.0 points (3 seeds)."
    )


def test_where_nothing_can_be_compared_nothing_is():
    below = demo_verdict(compared(within=False), SETTLED, images=359).headline
    assert below.startswith(
        "Nothing to compare: CEM's accuracy of 97.3 % lies below that of noise alone at every level"
    )
    assert "no curve of noise alone" in demo_verdict(None, SETTLED, images=359).headline


def test_attacks_that_did_not_converge_or_cannot_be_judged_weaken_the_verdict():
    verdicts = [*SETTLED, Convergence(False, "too short"), Convergence(None, "older")]
    notes = " ".join(demo_verdict(compared(), verdicts, images=359).notes)
    assert "In 1 of 11 runs an attack had not converged: their errors are no evidence of safety" in notes
    assert "1 of 11 runs: convergence not judged (older rule)" in notes


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
