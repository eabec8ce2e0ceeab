"""The audit's page, from figures made by hand."""

import re

import pytest
import torch
from report_data import EVIDENCE, check_self_contained

from sfumato.errors import FeatureError
from sfumato.report.audit import write_audit_report

IMAGES = torch.linspace(0, 1, 3 * 16).reshape(3, 1, 4, 4)


def spread(value, error=0.0):
    return {"mean": value, "error": error, "worst5": value / 2, "worst": value / 4}


def attack(name, mse, history=(), converged=True):
    figures = {"images": 60, "mse": spread(mse, 0.0002), "psnr": spread(20.0), "ssim": spread(0.5)}
    curve = [{"epoch": epoch, "held_out_mse": value} for epoch, value in enumerate(history)]
    return {
        **{"name": name, "images": 300, "seconds": 2.0, "history": curve, "converged": converged, "held_out_mse": mse},
        **{"test": figures, "train": figures, "reason": "" if converged else "still falling"},
    }


def result():
    """As `audit.json` has it."""
    channel = {"noise_std": 0.1, "clip_norm": 4.0, "quantize_bits": 8, "transforms": []}
    attacks = [attack("blind", 0.0995), attack("decoder", 0.02, (0.05, 0.03), False), attack("ridge", 0.01)]
    kinds = ("mse", "psnr", "ssim")
    ratio = {"kind": "ratio", "label": "floor left by Theorem 1, from held-out information", "value": 0.5, "unit": ""}
    return {
        "verdict": {"headline": "Of 60 images ...", "notes": [], "outcome": "failed", "sentence": "A condition holds."},
        "thresholds": [
            {"expression": "psnr_worst5 > 9", "value": 9.876, "pessimistic": 10.5, "holds": True},
            {"expression": "accuracy < 0.5", "value": None, "pessimistic": None, "holds": None},
        ],
        "requirements": [{"name": "a trained attack", "met": False, "sentence": "no trained attack converged"}],
        "consistency": {"violations": []},
        "target": {"name": "<net>", "kind": "run", "gradients": True, "digest": "ab12", "feature_shape": [2, 3],
                   "channel": channel},
        "data": {"name": "digits", "image_shape": [1, 4, 4], "train_images": 300, "test_images": 60, "caveat": "",
                 "reconstructed": {"train": 60, "test": 60}, "skipped": []},
        "accuracy": 0.9,
        "metrics": {"psnr_mean": 20.0, "psnr_worst5": 30.0, "psnr_worst": 40.0},
        "budget": {"minutes": 1.0, "seconds": 58.0},
        "reference": {"train": 0.11, "test": 0.1},
        "attacks": attacks,
        "best": {"test": dict.fromkeys(kinds, "ridge"),
                 "per_image": {"counts": {"ridge": 45, "decoder": 15, "blind": 0},
                               "summary": {kind: spread(0.005) for kind in kinds}}},
        "queries": [],
        "knowledge": [],
        "probes": [],
        "leakage": {"sentence": "Named in 31 %.", "candidates": 60, "identified_at_most": 0.7, "information": 2.0,
                    "information_error": 0.1, "clipped_at_most": None},
        "bounds": [ratio | {"information": 2.0, "assumption": "In the mean.", "gates": False, "notes": ["from 60"]}],
        "not_tested": [{"what": "gan", "why": "too little time"}],
        "failed": [],
        "evidence": EVIDENCE,
    }  # fmt: skip


def written(tmp_path, data):
    images = {one["name"]: IMAGES for one in data["attacks"]}
    write_audit_report(tmp_path / "a.html", data, {"worst": (IMAGES, images), "typical": (IMAGES, images)})
    return (tmp_path / "a.html").read_text(encoding="utf-8")


def test_the_verdict_first_then_words_then_pictures_and_numbers(tmp_path):
    source = written(tmp_path, result())
    text = check_self_contained(source).text
    steps = (
        "Sfumato audit: <net> Of 60 images",
        "The verdict: failed A condition holds.",
        "failed fails if psnr_worst5 > 9; measured 9.876, and 10.5 at the end",
        "not judged fails if accuracy < 0.5; measured nothing",
        "Missing: a trained attack. no trained attack converged.",
        "device (edge) wire cloud",
        "PSNR is 10 log",
        "Named in 31 %. The attacker has all 60 unseen images",
        "ridge MSE 0.0100, SSIM 0.50 decoder MSE 0.0200",
        "ridge 10.0 20.0 5.0 0.25 0.50 0.12 0.0050 0.0100 ± 0.0002 0.0025 0.0100",
        "decoder not converged 10.0",
        "ridge 45 (75.0 %), decoder 15 (25.0 %)",
        "1 of 3 attacks had not converged",
        "decoder: still falling",
        "Theorem 1 as a ratio",
        "ISO/IEC 27559:2022: 7.3.2, maximum or average risk. Both: on average 20.0 dB PSNR",
        "gan: too little time. Attackers",
        "noise σ 0.1, clipped to norm 4, 8 bits",
    )
    places = [text.find(step, text.find("The verdict") if index > 1 else 0) for index, step in enumerate(steps)]
    assert -1 not in places, steps[places.index(-1)]
    assert places == sorted(places)


def test_an_attack_that_does_no_better_than_the_mean_image_is_folded_away(tmp_path):
    source = written(tmp_path, result())
    assert re.findall(r"Hardly better than the mean image: (.*?)</summary>", source) == ["blind"]
    assert len(re.findall("<img", source)) == 6  # originals and two attacks, worst and typical
    data = result()
    data["attacks"] = data["attacks"][:1]
    data["best"]["test"] = dict.fromkeys(("mse", "psnr", "ssim"), "blind")
    assert "Hardly better" not in written(tmp_path, data)  # where all are, all are shown


def test_what_is_not_there_has_no_section(tmp_path):
    data = result() | {"thresholds": [], "requirements": [], "bounds": []}
    data["data"]["caveat"] = "Only small grey digits."
    text = check_self_contained(written(tmp_path, data)).text
    for heading in ("The gate", "What a pass needs", "This audit contradicts itself", "The same image", "What failed"):
        assert heading not in text
    assert "Nothing: without noise on the wire the information in a feature is unlimited" in text
    assert "data Only small grey digits." in text


def test_pictures_that_are_none_are_refused(tmp_path):
    with pytest.raises(FeatureError, match="pictures have to be"):
        write_audit_report(tmp_path / "a.html", result(), {"worst": (IMAGES[0], {})})


@pytest.mark.parametrize(
    ("rank", "smallest", "words"),
    [
        (0, 0.0251, "of its own level for each value, σ 0.0251 in the weakest direction, shape 3fa4c1b2"),
        (3, 0.0, "correlated through a factor of rank 3, no noise in the weakest direction, shape 3fa4c1b2"),
    ],
)
def test_noise_with_a_shape_shows_it_and_its_weakest_direction(tmp_path, rank, smallest, words):
    data = result()
    data["target"]["channel"] |= {"noise_shape": "3fa4c1b2" * 8, "noise_smallest": smallest, "noise_rank": rank}
    text = check_self_contained(written(tmp_path, data)).text
    assert f"on the wire 2×3 values, noise σ 0.1 on average, {words}, clipped to norm 4, 8 bits" in text
