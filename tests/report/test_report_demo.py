import re

import pytest
import torch
from report_data import FALLING, check_self_contained, pictures, result

from sfumato.errors import ConfigError, FeatureError
from sfumato.report.demo import demo_table, write_demo_report


def written(tmp_path, data, reconstructed=None):
    originals, images = pictures()
    path = tmp_path / "report.html"
    write_demo_report(path, data, originals, images if reconstructed is None else reconstructed)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The page of the result as it is."""
    return written(tmp_path_factory.mktemp("demo"), result())


@pytest.fixture(scope="module")
def text(source):
    return check_self_contained(source).text


def test_the_page_needs_nothing_else(source):
    page = check_self_contained(source)
    images = page.named("img")
    assert len(images) == 5
    assert all(image["alt"] for image in images)
    assert page.named("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))


def test_the_headline_stands_first_and_identification_beside_the_pictures(text):
    head = text.index(
        "At equal accuracy CEM leaves the attacker 2.0 times the error of noise alone, and the digit among"
    )
    assert head < text.index("What the attacker sees") < text.index("The numbers")
    assert "noise alone, σ 0.2 error 0.0150, identified 50.0 %, accuracy 95.0 % (nearest)" in text
    assert "noise + CEM, σ 0.1 error 0.0240, identified 25.0 %, accuracy 97.3 % (nearest)" in text


def test_every_number_is_there(text):
    rest = "20.25 ± 0.00 0.625 ± 0.000"
    for line in (
        "defence accuracy, % MSE, unseen identified, % information held out, nats identified at most, % MSE, training "
        "PSNR, unseen, dB SSIM, unseen",
        f"no defence 3 seeds 98.6 ± 0.0 0.0065 ± 0.0000 100.0 ± 0.0 – – 0.0032 ± 0.0000 {rest}",
        "noise alone, σ 0.1 3 seeds 97.2 ± 0.2 0.0090 ± 0.0010 75.0 ± 0.0 12.5 ± 0.0 90.0 ± 0.0 0.0045 ± 0.0005",
        "noise alone, σ 0.2 3 seeds 95.0 ± 0.0 0.0150 ± 0.0000 50.0 ± 0.0",
        "noise + CEM, σ 0.1 3 seeds 97.3 ± 0.1 0.0240 ± 0.0020 25.0 ± 0.0 12.5 ± 0.0 90.0 ± 0.0 0.0120 ± 0.0010",
    ):
        assert line in text, line
    assert "an MSE of 0.0717" in text
    assert "seeds 0, 1, 2" in text
    for value in ("143 s", "A small computer", "fp32", "3.12.3", "2.13.0+cpu", "0.1.0", "abc1234"):
        assert value in text
    assert text.count("Only small grey digits.") == 2
    assert "In all 12 runs every attack had converged" in text


def test_every_attack_is_shown_the_strongest_first(text):
    assert "MSE on unseen images nearest decoder" in text
    assert "noise + CEM, σ 0.1 3 seeds 0.0240 ± 0.0020 strongest 0.0245 ± 0.0020" in text


def test_the_curve_averages_seeds_and_carries_error_bars(text):
    assert "noise alone: σ 0.1: MSE 0.0090 ± 0.0010, accuracy 97.2 ± 0.2 %, σ 0.2: MSE 0.0150, accuracy 95.0 %" in text
    assert "noise + CEM: σ 0.1: MSE 0.0240 ± 0.0020, accuracy 97.3 ± 0.1 %" in text
    assert (
        "up and to the right is better. σ: standard deviation of the noise. Bars: standard deviation over seeds."
        in text
    )
    assert "epoch of training 3, information bound 12.5" in text


def test_the_limits_are_spelled_out(text):
    for phrase in (
        "An attack that fails proves nothing about a better one.",
        "Fresh noise averages away.",
        "No error on this page is a lower bound.",
        "underestimates",
        "not the error of a reconstruction",
        "the encoder with all its weights; the training images",
    ):
        assert phrase in text, phrase


def test_convergence_is_judged_from_the_history_and_not_from_the_verdict_of_the_day(tmp_path):
    data = result()
    data["rows"][2]["attacks"]["decoder"]["history"] = FALLING
    assert data["rows"][2]["attacks"]["decoder"]["converged"] is True
    text = check_self_contained(written(tmp_path, data)).text
    assert "In 1 of 12 runs an attack had not converged: their errors are no evidence of safety" in text
    assert "noise + CEM, σ 0.1, seed 0: the last 1 epochs still gained 20%" in text
    assert "3 seeds, 1 not converged" in text
    assert "Hollow points rest on an attack that had not converged" in text


def test_rows_without_histories_are_not_judged(tmp_path):
    data = result()
    for attack in data["rows"][0]["attacks"].values():
        del attack["history"], attack["trivial_mse"]
    text = check_self_contained(written(tmp_path, data)).text
    assert "1 of 12 runs: convergence not judged (older rule)" in text
    assert "no defence, seed 0: convergence not judged (older rule)" in text
    _, (line,) = demo_table(data["rows"][:1])
    assert (line[5], line[7]) == ("–", "1 seed, convergence not judged (older rule)")


def test_markup_in_names_and_notes_stays_text(tmp_path):
    data = result()
    evil = "<script>alert('x')</script>&\"$x_1"
    for entry in data["rows"]:
        if entry["defense"] == "none":
            entry |= {"defense": evil, "strongest": evil}
            entry["attacks"]["nearest"] |= {"converged": False, "reason": evil}
    data["caveat"] = evil
    data["evidence"] = data["evidence"] | {"device": evil, "<b>": 1}
    data["histories"] = {evil: [2.0, 1.0]}
    x, reconstructed = pictures()
    source = written(tmp_path, data, {evil: x, "noise": reconstructed["noise"]})
    page = check_self_contained(source)
    assert "<script" not in source
    assert "<b>1" not in source
    assert evil in page.text
    (image,) = [image for image in page.named("img") if evil in image["alt"]]
    assert image["src"].startswith("data:image/png")


def test_a_foreign_defence_has_one_colour_everywhere(tmp_path):
    data = result()
    for entry in data["rows"]:
        if entry["defense"] == "none":
            entry["defense"] = "zeta"
    data["histories"] = {"zeta": [3.0, 2.0]}
    source = written(tmp_path, data, {"zeta": pictures()[0]})
    assert re.findall(r'--c: var\(--s(\d)\)"></span><b>zeta', source) == ["3"]
    for figure in ("information", "trade-off"):
        svg = source[source.index(f'id="{figure}-title"') :].split("</svg>")[0]
        assert "--s3" in svg


def test_the_same_input_gives_the_same_bytes(tmp_path, source):
    assert written(tmp_path, result()) == source


def test_one_seed_without_history(tmp_path):
    data = result()
    data["rows"] = [entry for entry in data["rows"] if entry["seed"] == 0]
    data["histories"] = {"noise": []}
    for part in data["equal_accuracy"].values():
        part |= {"interval": None, "seeds": 1}
    text = check_self_contained(written(tmp_path, data)).text
    assert "One seed only" in text
    assert "Mean ± standard deviation" not in text
    assert "The information during training" not in text
    assert "no defence 1 seed 98.6 0.0065 100.0" in text


def test_bad_input_is_refused(tmp_path):
    data = result()
    with pytest.raises(FeatureError, match=r"got \(2, 8, 8\)"):
        written(tmp_path, data, {"none": torch.rand(2, 8, 8)})
    data["rows"] = []
    with pytest.raises(ConfigError, match="has no rows; run the demo"):
        written(tmp_path, data)
    assert list(tmp_path.iterdir()) == []
