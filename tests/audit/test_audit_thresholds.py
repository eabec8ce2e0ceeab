import math
import re

import pytest
import torch

from sfumato.attacks import Reconstruction
from sfumato.audit import METRICS, conclude, judge, parse_threshold
from sfumato.audit.result import _best
from sfumato.errors import ConfigError


def result(metrics, **parts):
    verdict = {"headline": "", "notes": []}
    return {"metrics": metrics, "pessimistic": {}, "requirements": [], "failed": [], "verdict": verdict} | parts


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
    ("text", "remedy"),
    [
        ("psnr_worst5 < 1", "a smaller psnr_worst5 is better; write 'psnr_worst5 > NUMBER'"),
        ("mse_mean >= 0.5", "a larger mse_mean is better; write 'mse_mean < NUMBER'"),
        ("accuracy > 0.5", "a larger accuracy is better; write 'accuracy < NUMBER'"),
    ],
)
def test_a_condition_against_the_direction_of_its_metric_is_refused(text, remedy):
    with pytest.raises(ConfigError, match=re.escape(f"would fail a model for being better, because {remedy}")):
        parse_threshold(text)


def test_every_metric_has_one_direction():
    def parses(text):
        try:
            return parse_threshold(text)
        except ConfigError:
            return None

    for name in METRICS:
        smaller_is_worse = name.startswith("mse") or name == "accuracy"
        assert [sign for sign in "<>" if parses(f"{name} {sign} 1")] == ["<" if smaller_is_worse else ">"]


def test_nan_fails_and_is_no_number_in_the_result():
    found = conclude(result({"psnr_worst5": math.nan}), [parse_threshold("psnr_worst5 > 20")])
    (line,) = found["thresholds"]
    assert (line["holds"], line["value"]) == (True, None)
    assert found["verdict"]["outcome"] == "failed"
    assert found["verdict"]["sentence"] == "Failed: psnr_worst5 is not a number."


def test_a_value_is_judged_at_the_end_of_its_interval_that_leaks_more():
    found = result({"psnr_worst5": 19.5, "accuracy": 0.91}, pessimistic={"psnr_worst5": 20.5, "accuracy": 0.89})
    lines = conclude(found, [parse_threshold("psnr_worst5 > 20"), parse_threshold("accuracy < 0.9")])["thresholds"]
    assert [line["holds"] for line in lines] == [True, True]
    assert conclude(found, [parse_threshold("psnr_worst5 > 21")])["thresholds"][0]["holds"] is False


def test_nothing_passes_while_a_requirement_is_not_met():
    missing = {"name": "a search image by image", "met": False, "sentence": "no search image by image ran"}
    found = result({"psnr_worst5": 19.0}, requirements=[missing])
    verdict = conclude(found, [parse_threshold("psnr_worst5 > 20")])["verdict"]
    assert (verdict["outcome"], verdict["sentence"]) == ("not judged", "Not judged: no search image by image ran.")
    assert conclude(found, [parse_threshold("psnr_worst5 > 10")])["verdict"]["outcome"] == "failed"
    met = result({"psnr_worst5": 19.0}, requirements=[missing | {"met": True}])
    assert conclude(met, [parse_threshold("psnr_worst5 > 20")])["verdict"]["outcome"] == "passed"
    assert conclude(met, [])["verdict"]["outcome"] == "no condition"


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
    found = conclude(result({"accuracy": None}), [parse_threshold("accuracy < 0.5")])
    (line,) = found["thresholds"]
    assert line["holds"] is None
    assert line["value"] is None
    assert found["verdict"]["sentence"] == "Not judged: not everything was measured that accuracy rests on."


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
    failed = [{"what": "one", "kind": kind, "why": "it broke"}]
    (line,) = judge([parse_threshold(text)], metrics, failed)
    assert line["holds"] is holds


def test_every_metric_says_what_it_is():
    assert all(text and not text[0].isupper() for text in METRICS.values())


@pytest.mark.parametrize(("gap", "named"), [(-0.02, "optimization"), (-0.0001, "ridge")])
def test_a_search_on_some_images_is_the_strongest_where_it_is_clearly_better_on_them(gap, named):
    def attack(name, images, mse, **more):
        part = {"images": images, "mse": {"mean": mse}, "psnr": {"mean": -mse}, "ssim": {"mean": -mse}}
        return {"name": name, "test": part, "train": part, **more}

    search = attack("optimization", 44, 0.0076, same_images={"gap": gap, "error": 0.001})
    values = torch.rand(120)
    best = _best(
        [search, attack("ridge", 120, 0.0268)],
        {"ridge": Reconstruction(values, values, values, torch.arange(120), values)},
    )
    assert {*best["test"].values(), *best["train"].values()} == {named}
