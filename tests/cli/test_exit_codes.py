"""0 fine, 1 the gate's condition holds, 2 a mistake in the input, 3 not judged or failed inside."""

import re
import shlex
from pathlib import Path

import pytest

from sfumato.attacks import NearestAttack
from sfumato.audit.suite import Piece
from sfumato.audit.verdict import requirements
from sfumato.cli.commands import COMMANDS, parser_of
from sfumato.cli.main import main
from sfumato.errors import ConfigError, NotJudgedError, RankLost

SUITE = (Piece("ridge", "attack", "ridge", 1, 0), Piece("nearest", "attack", "nearest", 1, 0))
AUDIT = ["audit", "sfumato.audit.synthetic:linear_gaussian", "--minutes", "0.3", "--device", "cpu"]


def raising(error):
    def run(*_, **__):
        raise error

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_inside_any_command_is_one_sentence_and_3(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(f"sfumato.cli.{command}.run", raising(ZeroDivisionError("by\nzero")))
    assert main(shlex.split(parser_of(command).example)[1:]) == 3
    told = capsys.readouterr().err
    assert told.startswith(
        f"sfumato: error: {command} failed inside (ZeroDivisionError: by zero); the traceback is in "
    )
    (path,) = re.findall(r"is in (\S+),", told)
    assert "raise error\nZeroDivisionError: by\nzero" in Path(path).read_text()


def test_where_no_file_can_be_written_the_traceback_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.NamedTemporaryFile", raising(OSError("the disk is full")))
    monkeypatch.setattr("sfumato.cli.train.run", raising(MemoryError()))
    assert main(["train"]) == 3
    assert "MemoryError\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("x"), 2), (NotJudgedError("x"), 3), (RankLost("x"), 3), (KeyboardInterrupt(), 130)],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_kind_of_error_has_its_code(error, code, monkeypatch):
    monkeypatch.setattr("sfumato.cli.train.run", raising(error))
    assert main(["train"]) == code


def test_a_failed_attack_leaves_an_audit_not_judged_unless_the_condition_holds(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sfumato.audit.run.load_suite", lambda: SUITE)
    monkeypatch.setattr(NearestAttack, "fit", raising(RuntimeError("odd")))
    words = [*AUDIT, "--out", str(tmp_path)]
    assert main(words) == 3
    assert "is not judged: the attack nearest failed, RuntimeError: odd." in capsys.readouterr().err
    assert main([*words, "--fail-if", "psnr_mean > 99"]) == 3
    assert main([*words, "--fail-if", "psnr_mean > 0"]) == 1
    assert "The verdict: failed" in (tmp_path / "report.html").read_text()


def test_an_audit_without_its_strongest_attacks_does_not_pass(monkeypatch, tmp_path, capsys):
    """With every requirement met it does; without conditions there is nothing to pass."""
    monkeypatch.setattr("sfumato.audit.run.load_suite", lambda: SUITE)
    words = [*AUDIT, "--out", str(tmp_path)]
    assert main(words) == 0
    assert main([*words, "--fail-if", "psnr_mean > 99"]) == 3
    told = capsys.readouterr().err
    assert "is not judged: the attacks cloud:ridge and cloud:nearest on the cloud's activations did not run" in told
    assert "(and 2 more)." in told
    assert main([*words, "--fail-if", "psnr_mean > 0"]) == 1
    gone = ("attacks on what the cloud computes", "a converged trained attack", "a search image by image")
    monkeypatch.setattr(
        "sfumato.audit.result.requirements",
        lambda *found: [one | {"met": one["met"] or one["name"] in gone} for one in requirements(*found)],
    )
    assert main([*words, "--fail-if", "psnr_mean > 99"]) == 0
    assert "Passed: none of the 1 conditions holds." in capsys.readouterr().out
    assert main([*words, "--fail-if", "psnr_mean > 99", "--least-images", "100000"]) == 3
    assert main([*words, "--fail-if", "mse_mean_repeated < 1"]) == 3  # nothing of the kind was measured
    assert "not everything was measured that mse_mean_repeated rests on" in capsys.readouterr().err
    assert main([*words, "--fail-if", "psnr_best > 1"]) == 2
    assert main([*words, "--fail-if", "psnr_mean < 1"]) == 2


def test_the_codes_are_documented_where_they_are_used(capsys):
    page = (Path(__file__).parents[2] / "docs" / "audit-in-ci.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d) \|", page, re.M) == ["0", "1", "2", "3"]
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{code}: " in told for code in "0123")
