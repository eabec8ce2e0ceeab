"""The audit in the manifest is one of the exported weights, with that audit's own figures, or there is none."""

import hashlib
import json
import re

import pytest

import sfumato
from sfumato.audit import conclude, parse_threshold
from sfumato.audit.schema import FORMAT, schema
from sfumato.audit.verdict import verdict
from sfumato.deploy import audited
from sfumato.deploy.export import ExportConfig, wire_bits
from sfumato.errors import CheckpointError, ConfigError
from sfumato.split import Channel

WEIGHTS = hashlib.sha256(b"weights").hexdigest()


def figures(mean, worst5):
    one = {"mean": mean, "error": 0.0, "worst5": worst5, "worst": worst5}
    return {"images": 9, "mse": one, "psnr": {**one, "mean": 10 * mean}, "ssim": {**one, "mean": mean / 2}}


CHANNEL = {"noise_std": 0.1, "clip_norm": None, "quantize_bits": None, "low": 0.0, "high": 1.0}


def audit_headline(run, given, tell, bits=8, **channel):
    """Of the run with `WEIGHTS` and this channel, exported with so many bits."""
    return audited.audit_headline(run, WEIGHTS, Channel(**{**CHANNEL, **channel}), bits, given, tell)


def audit(weights, *thresholds, channel=None, met=True):
    """Two attacks, of which the second is the stronger one."""
    value = {
        "format": FORMAT,
        "target": {
            "digest": hashlib.sha256(weights).hexdigest(),
            "versions": {"sfumato": sfumato.__version__, "torch": "2"},
            "channel": {**CHANNEL, "transforms": [], **(channel or {})},
        },
        "attacks": [
            {"name": "ridge", "converged": None, "test": figures(0.5, 0.4)},
            {"name": "decoder", "converged": False, "test": figures(0.25, 0.125)},
        ],
        "best": {"test": {"mse": "decoder"}},
        "metrics": {"psnr_worst5": 0.125, "mse_ratio": 0.5},
        "pessimistic": {},
        "requirements": [{"name": "a search", "met": met, "sentence": "no search ran"}],
        "consistency": {"violations": []},
        "leakage": {"sentence": "Of 60 images an attacker names the right one in 5 %; no attacker can exceed 9 %."},
        "bounds": [],
        "failed": [],
        "accuracy": 0.75,
        "data": {"skipped": [], "shared": 0, "test_images": 9},
        "budget": {"minutes": 3.0},
        "evidence": {"sfumato": "0.1.0", "commit": "abc"},
    }
    return conclude(value | {"verdict": verdict(value)}, [parse_threshold(text) for text in thresholds])


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
    value = audit(b"weights", "psnr_worst5 > 20")
    path = put(run / place, value)
    found = audit_headline(run, None, pytest.fail)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["headline"].startswith(
        "Of 60 images an attacker names the right one in 5 %; no attacker can exceed 9 %."
    )
    assert "the average one at 2.5 dB (SSIM 0.12) by the strongest attack, decoder" in found["headline"]
    assert "1 of 2 attacks had not converged" in found["notes"][0]
    strongest = {"attack": "decoder", "converged": False, "images": 9}
    spreads = {"mse": (0.25, 0.125), "psnr": (2.5, 0.125), "ssim": (0.125, 0.125)}
    assert found["strongest"] == strongest | {k: {"mean": a, "worst5": b} for k, (a, b) in spreads.items()}
    line = {"expression": "psnr_worst5 > 20", "metric": "psnr_worst5", "value": 0.125, "limit": 20.0, "holds": False}
    assert (found["thresholds"], found["passed"], found["unconverged"]) == ([line], True, 1)
    assert (found["channel"]["noise_std"], found["minutes"]) == (0.1, 3.0)


def test_passed_is_what_the_audit_said(run):
    """A condition that holds is a failure, none at all is no success, and what was not judged did not pass."""
    for thresholds, met, passed in (
        (["psnr_worst5 > 0.1"], True, False),
        ([], True, None),
        (["psnr_worst5 > 20"], False, False),
        (["psnr_mean > 9"], True, False),  # it was not measured
        (["psnr_worst5 > 20"], True, True),
    ):
        put(run, audit(b"weights", *thresholds, met=met))
        assert audit_headline(run, None, pytest.fail)["passed"] is passed


def test_a_stale_audit_is_not_taken(run):
    path = put(run, audit(b"earlier weights"))
    told = []
    assert audit_headline(run, None, told.append) is None
    assert audit_headline(run, path, told.append) is None
    assert len(told) == 2
    assert "is an audit of other weights than those that are exported, so the bundle says that it was" in told[0]
    put(run / "audit", audit(b"weights"))  # a newer one elsewhere is
    assert audit_headline(run, None, told.append)["strongest"]["attack"] == "decoder"


@pytest.mark.parametrize(
    ("audited_as", "exported_as", "words"),
    [
        ({"quantize_bits": 8}, {"quantize_bits": 8, "bits": 16}, "quantize_bits 8, and 16 will leave the device"),
        ({"quantize_bits": 8}, {"quantize_bits": 8, "bits": None}, "quantize_bits 8, and None will leave"),
        ({"quantize_bits": 8}, {"quantize_bits": 8, "bits": 8}, None),
        ({"quantize_bits": 8}, {"quantize_bits": 8, "bits": 8, "high": 2.0}, "high 1.0, and 2.0 will leave"),
        ({}, {"bits": 8}, None),  # levels of what was audited
        ({}, {"bits": None}, None),
        ({}, {"noise_std": 0.05}, "noise_std 0.1, and 0.05 will leave the device"),
        ({"clip_norm": 1.0}, {}, "clip_norm 1.0, and None will leave the device"),
        ({"transforms": ["Dropout"]}, {}, r"transforms \['Dropout'\], and \[\] will leave the device"),
    ],
)
def test_only_what_was_audited_is_stamped(run, audited_as, exported_as, words):
    put(run, audit(b"weights", "psnr_worst5 > 20", channel=audited_as))
    told = []
    found = audit_headline(run, None, told.append, **exported_as)
    assert (found is None) is (words is not None)
    assert re.search(words or "^$", told[0] if told else "")


def test_an_audit_by_another_version_is_not_taken(run, monkeypatch):
    put(run, audit(b"weights"))
    monkeypatch.setattr("sfumato.__version__", "99.0")
    told = []
    assert audit_headline(run, None, told.append) is None
    assert "and this is 99.0" in told[0]


@pytest.mark.parametrize(
    ("settings", "trained", "bits"),
    [({}, None, 8), ({}, 4, 4), ({"quantize_bits": 16}, 8, 16), ({"floats": True}, 8, None)],
)
def test_the_bits_on_a_bundles_wire(settings, trained, bits):
    assert wire_bits(Channel(quantize_bits=trained), ExportConfig("m", **settings)) == bits


def test_no_audit_and_what_is_none(run, tmp_path):
    assert audit_headline(run, None, pytest.fail) is None
    with pytest.raises(ConfigError, match="there is no audit"):
        audit_headline(run, tmp_path / "nowhere.json", pytest.fail)
    lacking = audit(b"weights")
    del lacking["best"]
    for damaged in ("{", "[]", "{}", json.dumps(lacking), json.dumps(audit(b"weights") | {"format": 1})):
        put(run, damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            audit_headline(run, None, pytest.fail)


def test_every_part_that_is_read_is_one_that_an_audit_must_hold():
    read = {"target", "attacks", "best", "verdict", "thresholds", "budget", "evidence", "format"}
    assert read <= set(schema()["required"])
