"""The audit in the manifest is one of the exported weights, with that audit's own figures, or there is none."""

import hashlib
import json

import pytest

from sfumato.audit.schema import schema
from sfumato.audit.verdict import verdict
from sfumato.deploy.audited import audit_headline
from sfumato.errors import CheckpointError, ConfigError

WEIGHTS = hashlib.sha256(b"weights").hexdigest()


def figures(mean, worst5):
    one = {"mean": mean, "error": 0.0, "worst5": worst5, "worst": worst5}
    return {"images": 9, "mse": one, "psnr": {**one, "mean": 10 * mean}, "ssim": {**one, "mean": mean / 2}}


def audit(weights, thresholds=()):
    """Two attacks, of which the second is the stronger one."""
    value = {
        "format": 1,
        "target": {
            "digest": hashlib.sha256(weights).hexdigest(),
            "channel": {"noise_std": 0.1},
        },
        "attacks": [
            {"name": "ridge", "converged": None, "test": figures(0.5, 0.4)},
            {"name": "decoder", "converged": False, "test": figures(0.25, 0.125)},
        ],
        "best": {"test": {"mse": "decoder"}},
        "metrics": {"psnr_worst5": 0.125, "mse_ratio": 0.5},
        "thresholds": list(thresholds),
        "law": {"violations": []},
        "leakage": {"sentence": "Of 60 images an attacker names the right one in 5 %; no attacker can exceed 9 %."},
        "bounds": [],
        "failed": [],
        "accuracy": 0.75,
        "data": {"skipped": []},
        "budget": {"minutes": 3.0},
        "evidence": {"sfumato": "0.1.0", "commit": "abc"},
    }
    return value | {"verdict": verdict(value)}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    return folder


def put(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder / "audit.json"


@pytest.mark.parametrize("place", [".", "audit", "../audit-first"])
def test_an_audit_of_these_weights_is_found_and_exact(run, place):
    line = {"expression": "psnr_worst5 > 20", "metric": "psnr_worst5", "value": 0.125, "limit": 20.0, "holds": False}
    path = put(run / place, audit(b"weights", [line]))
    found = audit_headline(run, WEIGHTS, None, pytest.fail)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["headline"].startswith(
        "Of 60 images an attacker names the right one in 5 %; no attacker can exceed 9 %."
    )
    assert "The strongest attack, decoder, redraws unseen images at 2.5 dB PSNR" in found["headline"]
    assert "1 of 2 attacks had not converged" in found["notes"][0]
    strongest = {"attack": "decoder", "converged": False, "images": 9}
    spreads = {"mse": (0.25, 0.125), "psnr": (2.5, 0.125), "ssim": (0.125, 0.125)}
    assert found["strongest"] == strongest | {k: {"mean": a, "worst5": b} for k, (a, b) in spreads.items()}
    assert (found["thresholds"], found["passed"], found["unconverged"]) == ([line], True, 1)
    assert (found["channel"], found["minutes"]) == ({"noise_std": 0.1}, 3.0)


def test_a_threshold_that_holds_is_a_failure_and_none_is_no_success(run):
    line = {"expression": "mse_mean < 1", "metric": "mse_mean", "value": 0.25, "limit": 1.0, "holds": True}
    put(run, audit(b"weights", [line]))
    assert audit_headline(run, WEIGHTS, None, pytest.fail)["passed"] is False
    put(run, audit(b"weights"))
    assert audit_headline(run, WEIGHTS, None, pytest.fail)["passed"] is None


def test_a_stale_audit_is_not_taken(run):
    path = put(run, audit(b"earlier weights"))
    told = []
    assert audit_headline(run, WEIGHTS, None, told.append) is None
    assert "is an audit of other weights" in told[0]
    with pytest.raises(ConfigError, match="is an audit of other weights"):
        audit_headline(run, WEIGHTS, path, told.append)
    put(run / "audit", audit(b"weights"))  # a newer one elsewhere is
    assert audit_headline(run, WEIGHTS, None, told.append)["strongest"]["attack"] == "decoder"


def test_no_audit_and_what_is_none(run, tmp_path):
    assert audit_headline(run, WEIGHTS, None, pytest.fail) is None
    with pytest.raises(ConfigError, match="there is no audit"):
        audit_headline(run, WEIGHTS, tmp_path / "nowhere.json", pytest.fail)
    lacking = audit(b"weights")
    del lacking["best"]
    for damaged in ("{", "[]", "{}", json.dumps(lacking), json.dumps(audit(b"weights") | {"format": 2})):
        put(run, damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            audit_headline(run, WEIGHTS, None, pytest.fail)


def test_every_part_that_is_read_is_one_that_an_audit_must_hold():
    read = {"target", "attacks", "best", "verdict", "thresholds", "budget", "evidence", "format"}
    assert read <= set(schema()["required"])


def test_what_was_not_judged_is_no_success(run):

    line = {"expression": "psnr_mean > 9", "metric": "psnr_mean", "value": None, "limit": 9.0, "holds": None}
    put(run, audit(b"weights", [line]))
    assert audit_headline(run, WEIGHTS, None, pytest.fail)["passed"] is False
