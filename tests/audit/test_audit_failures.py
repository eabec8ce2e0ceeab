"""A piece that fails is named, and the rest goes on."""

import json

import jsonschema
import pytest
import torch
from audit_cases import TINY, tiny_subject

from sfumato.attacks import DecoderAttack, NearestAttack, RidgeAttack
from sfumato.audit import run_audit, schema
from sfumato.audit.suite import Piece
from sfumato.errors import Interrupted, NotJudgedError, StorageError
from sfumato.report.audit import write_audit_report

pytestmark = pytest.mark.usefixtures("quick")

RIDGE = Piece("ridge", "attack", "ridge", 1, 0)
NEAREST = Piece("nearest", "attack", "nearest", 1, 0)
DECODER = Piece("decoder", "attack", "decoder", 1, 0, settings=TINY, epochs=(1, 1))
OPTIONS = {"noise": "fresh", "duplicates": "exact", "queries": [1, 2]}
REPEATS = Piece("repeats", "queries", "nearest", 1, needs=("noise",), options=OPTIONS)


def audit(folder, *suite):
    subject = tiny_subject()
    return run_audit(subject, subject.sets, folder, minutes=0.5, suite=suite)


def raising(error):
    def fit(*_, **__):
        raise error

    return fit


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("odd numbers\nand more"), "ValueError: odd numbers"),
        (MemoryError(), "it ran out of memory (MemoryError); audit on a larger machine, or with --limit fewer images"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "it ran out of memory (CUDA out of memory.); audit on a larger",
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate"), "it ran out of memory ([enforce fail at"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failed_attack_costs_itself_alone(tmp_path, monkeypatch, error, why):
    monkeypatch.setattr(NearestAttack, "fit", raising(error))
    done = audit(tmp_path, RIDGE, NEAREST, REPEATS)
    result = json.loads((tmp_path / "audit.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(result)
    assert [(one["what"], one["kind"]) for one in result["failed"]] == [("nearest", "attack"), ("repeats", "queries")]
    assert result["failed"][0]["why"].startswith(why)
    assert [one["name"] for one in result["attacks"]] == ["ridge"]
    assert result["metrics"]["mse_mean_repeated"] is None
    assert any("2 pieces of the audit failed (nearest, repeats)" in note for note in result["verdict"]["notes"])
    assert "Traceback" in (tmp_path / "pieces" / "nearest.error.txt").read_text()
    write_audit_report(tmp_path / "report.html", done.result, done.pictures(2))
    assert "What failed" in (tmp_path / "report.html").read_text()
    monkeypatch.undo()
    assert audit(tmp_path, RIDGE, NEAREST, REPEATS).result["failed"] == []  # called again, it is tried again
    assert not list(tmp_path.glob("pieces/*.error.txt"))


def test_an_attack_that_fails_while_it_is_timed_is_named_too(tmp_path, monkeypatch):
    monkeypatch.setattr(DecoderAttack, "_step", raising(ZeroDivisionError("by zero")))
    result = audit(tmp_path, RIDGE, DECODER).result
    assert result["failed"] == [{"what": "decoder", "kind": "attack", "why": "ZeroDivisionError: by zero"}]
    assert result["metrics"]["left_out"] == 1
    assert audit(tmp_path, RIDGE, DECODER).result["failed"] == result["failed"]


def test_bounds_and_accuracy_fail_like_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.audit.run.measure_bounds", raising(ValueError("no root")))
    result = audit(tmp_path, RIDGE).result
    assert result["bounds"] == []
    assert [one["what"] for one in result["failed"]] == ["bounds"]
    assert "van Trees, dFIL" not in [one["what"] for one in result["not_tested"]]


def test_where_every_attack_fails_there_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(RidgeAttack, "fit", raising(ValueError("odd")))
    with pytest.raises(NotJudgedError, match=r"no attack could be run.*ridge: ValueError: odd"):
        audit(tmp_path, RIDGE)


@pytest.mark.parametrize("error", [Interrupted("stop"), StorageError("the disk is full"), KeyboardInterrupt()])
def test_an_interruption_and_a_full_disk_end_the_audit(tmp_path, monkeypatch, error):
    monkeypatch.setattr(NearestAttack, "fit", raising(error))
    with pytest.raises(type(error)):
        audit(tmp_path, RIDGE, NEAREST)
