import re

import pytest
import torch
from report_data import check_self_contained, pictures, result

from sfumato.errors import ConfigError, FeatureError
from sfumato.report.demo import write_demo_report


def written(tmp_path, data, redrawn=None):
    originals, images = pictures()
    path = tmp_path / "report.html"
    write_demo_report(path, data, originals, images if redrawn is None else redrawn)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(tmp_path):
    page = check_self_contained(written(tmp_path, result()))
    images = page.named("img")
    assert len(images) == 4
    assert all(image["alt"] for image in images)
    assert page.named("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))


def test_every_number_is_there(tmp_path):
    text = check_self_contained(written(tmp_path, result())).text
    assert "At an accuracy within 0.1 points, the attacker's error on unseen digits is 2.7 times as large" in text
    for line in (
        "accuracy, % 98.6 ± 0.0 97.2 ± 0.2 97.3 ± 0.1",
        "MSE, unseen 0.0065 ± 0.0000 0.0090 ± 0.0010 0.0240 ± 0.0020",
        "MSE, training 0.0032 ± 0.0000 0.0045 ± 0.0005 0.0120 ± 0.0010",
        "PSNR, unseen, dB 20.25 ± 0.00",
        "PSNR, training, dB 24.50 ± 0.00",
        "SSIM, unseen 0.625 ± 0.000",
        "SSIM, training 0.750 ± 0.000",
        "information, nats – – 12.5 ± 0.0",
    ):
        assert line in text, line
    assert "an MSE of 0.0717" in text
    assert "seeds 0, 1, 2" in text
    for value in ("143 s", "A small computer", "fp32", "3.12.3", "2.13.0+cpu", "0.1.0", "abc1234"):
        assert value in text
    assert text.count("Only small grey digits.") == 2
    assert "All 11 attacks had converged" in text


def test_the_curve_averages_seeds_and_carries_error_bars(tmp_path):
    text = check_self_contained(written(tmp_path, result())).text
    assert "noise alone: σ 0.1: accuracy 97.2 ± 0.2 %, MSE 0.0090 ± 0.0010, σ 0.2: accuracy 95.0 %, MSE 0.0150" in text
    assert "noise + CEM: λ 0.25: accuracy 98.0 %, MSE 0.0125, λ 1: accuracy 97.3 ± 0.1 %, MSE 0.0240 ± 0.0020" in text
    assert "Error bars: standard deviation over seeds." in text
    assert "noise + CEM: from 40 to 12.5 nats in 3 epochs" in text


def test_the_limits_are_spelled_out(tmp_path):
    text = check_self_contained(written(tmp_path, result())).text
    for phrase in (
        "An attack that fails proves nothing about a better one.",
        "Fresh noise averages away.",
        "relative to H(x)",
        "underestimate",
        "does not rank mechanisms",
        "assumes the estimated clusters",
        "the encoder with all its weights; the training images",
    ):
        assert phrase in text, phrase


def test_unconverged_attacks_are_listed_wherever_they_are(tmp_path):
    data = result()
    for entry, reason in ((data["rows"][2], "the last 3 epochs still gained 5%"), (data["curve"][-2], "too short")):
        entry |= {"converged": False, "reason": reason}
    data["curve"][2] = data["rows"][2]
    source = written(tmp_path, data)
    text = check_self_contained(source).text
    assert "1 of 9 attacks had not converged: their errors are no evidence of safety" in text  # of the table
    assert "2 of 11 attacks had not converged" in text
    assert "noise + CEM, σ 0.1, λ 1, seed 0: the last 3 epochs still gained 5%" in text
    assert "noise alone, σ 0.2, seed 0: too short" in text
    assert "3 seeds, 1 not converged" in text
    assert "hollow points rest on an attack that had not converged" in text
    assert "All 11 attacks" not in text


def test_markup_in_names_and_notes_stays_text(tmp_path):
    data = result()
    evil = "<script>alert('x')</script>&\"$x_1"
    for entry in data["curve"]:
        if entry["defense"] == "none":
            entry["defense"] = evil
    for entry in data["rows"]:
        if entry["defense"] == "none":
            entry |= {"defense": evil, "converged": False, "reason": evil}
    data["caveat"] = evil
    data["evidence"] = data["evidence"] | {"device": evil, "<b>": 1}
    data["histories"] = {evil: [2.0, 1.0]}
    x, redrawn = pictures()
    source = written(tmp_path, data, {evil: x, "noise": redrawn["noise"]})
    page = check_self_contained(source)
    assert "<script" not in source
    assert "<b>1" not in source
    assert evil in page.text
    (image,) = [image for image in page.named("img") if evil in image["alt"]]
    assert image["src"].startswith("data:image/png")


def test_a_foreign_defence_has_one_colour_everywhere(tmp_path):
    data = result()
    for entry in (*data["rows"], *data["curve"]):
        if entry["defense"] == "none":
            entry["defense"] = "zeta"
    data["histories"] = {"zeta": [3.0, 2.0]}
    x, _ = pictures()
    source = written(tmp_path, data, {"alpha": x, "zeta": x})
    assert re.findall(r'--c: var\(--s(\d)\)"></span><b>zeta', source) == ["4"]  # alpha took 3
    assert re.findall(r'--c: var\(--s(\d)\)"></span>zeta', source) == ["4"]
    for figure in ("information", "trade-off"):
        svg = source[source.index(f'id="{figure}-title"') :].split("</svg>")[0]
        assert "--s4" in svg
        assert "--s3" not in svg


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert written(tmp_path, result()) == written(tmp_path, result())


def test_one_seed_without_history_or_sweep(tmp_path):
    data = result()
    data["rows"] = [entry for entry in data["rows"] if entry["seed"] == 0]
    data["curve"], data["histories"] = [], {"noise": []}
    text = check_self_contained(written(tmp_path, data)).text
    assert "One seed only" in text
    assert "Mean ± standard deviation" not in text
    assert "The information during training" not in text
    assert "accuracy, % 98.6 97.0 97.2" in text


def test_bad_input_is_refused(tmp_path):
    data = result()
    with pytest.raises(FeatureError, match=r"got \(2, 8, 8\)"):
        written(tmp_path, data, {"none": torch.rand(2, 8, 8)})
    data["rows"] = []
    with pytest.raises(ConfigError, match="has no rows; run the demo"):
        written(tmp_path, data)
    assert list(tmp_path.iterdir()) == []
