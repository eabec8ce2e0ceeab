import pytest

from sfumato.audit import METRICS, judge, parse_threshold
from sfumato.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("psnr_worst5 > 20", 20.1, True),
        ("psnr_worst5 > 20", 20.0, False),
        ("psnr_worst5>=20", 20.0, True),
        ("  mse_mean   <  .02 ", 0.019, True),
        ("mse_mean <= 2e-2", 0.02, True),
        ("mse_mean < 2e-2", 0.02, False),
        ("accuracy < 0.9", 0.95, False),
    ],
)
def test_conditions(text, value, holds):
    threshold = parse_threshold(text)
    (line,) = judge([threshold], {threshold.metric: value})
    assert line["holds"] is holds
    assert line["value"] == value


@pytest.mark.parametrize(
    "text", ["", "psnr_worst5", "psnr_worst5 > ", "psnr_worst5 = 20", "psnr_worst5 > 20 dB", "20 < psnr_worst5",
             "psnr_worst5 > 20, mse_mean < 1", "psnr_worst5 >> 20", "psnr_worst5 > nan"],
)  # fmt: skip
def test_what_cannot_be_read_gets_a_sentence(text):
    with pytest.raises(ConfigError, match=r"cannot be read; write METRIC, one of > >= < <=, and a number"):
        parse_threshold(text)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown metric; known are mse_mean, .*ssim_worst"):
        parse_threshold("psnr_best > 3")


def test_what_was_not_measured_does_not_pass_unseen():
    (line,) = judge([parse_threshold("accuracy < 0.5")], {"accuracy": None})
    assert line["holds"] is None
    assert line["value"] is None


@pytest.mark.parametrize(
    ("text", "kind", "holds"),
    [
        ("psnr_mean > 20", "attack", True),  # a further attack could not undo it
        ("psnr_mean > 30", "attack", None),
        ("psnr_mean > 30", "queries", False),
        ("psnr_mean > 30", "bounds", False),
        ("mse_mean_repeated < 0.1", "queries", None),
        ("mse_mean_repeated < 0.1", "attack", False),
        ("accuracy < 0.5", "attack", False),
    ],
)
def test_a_condition_that_rests_on_a_failed_piece_is_not_judged_unless_it_holds(text, kind, holds):
    metrics = {"psnr_mean": 25.0, "mse_mean_repeated": 0.2, "accuracy": 0.9}
    (line,) = judge([parse_threshold(text)], metrics, [{"what": "one", "kind": kind, "why": "it broke"}])
    assert line["holds"] is holds


def test_every_metric_says_what_it_is():
    assert all(text and not text[0].isupper() for text in METRICS.values())
