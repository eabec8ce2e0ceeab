"""The page of a model: its front matter is what hubs read, and it says what was audited."""

import yaml

from sfumato.model_card import model_card

AUDIT = {
    "headline": "Of 60 images an attacker names the right one in 5 %.",
    "notes": ["No bound here limits every attacker's error."],
    "passed": False,
    "strongest": {
        kind: {"mean": value, "worst5": value} for kind, value in (("mse", 0.02), ("psnr", 17), ("ssim", 0.4))
    },
}


def card(**changes):
    values = {
        "channel": {"noise_std": 0.1, "clip_norm": 2.0, "quantize_bits": 8},
        "input_shape": (1, 8, 8),
        "classes": ("0", "1"),
        "training": {"data": "digits", "accuracy": 0.975},
        "audit": AUDIT,
    }
    text = model_card("a: model", **values | changes)
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_accuracy_and_audit_are_in_the_front_matter_and_in_words():
    front, body = card()
    assert front["pipeline_tag"] == "image-classification"
    (model,) = front["model-index"]
    assert model["name"] == "a: model"
    metrics = {one["type"]: one["value"] for one in model["results"][0]["metrics"]}
    assert metrics["accuracy"] == 0.975
    assert metrics["reconstruction psnr, mean"] == 17
    assert "Accuracy on test images of digits: 97.50%." in body
    assert "standard deviation 0.1, clipped to norm 2, 8 bits for each value" in body
    assert "It did not pass its conditions. Of 60 images" in body


def test_what_was_not_audited_and_not_measured_is_not_claimed():
    front, body = card(audit=None, training={"accuracy": "high", "data": 3}, classes=())
    assert "model-index" not in front
    assert "Accuracy" not in body
    assert "was not audited" in body
    assert "classes" not in body
