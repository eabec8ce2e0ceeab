"""`sfumato audit` as a user calls it."""

import json

import pytest

from sfumato.audit import suite
from sfumato.audit.suite import Piece
from sfumato.cli.main import main

TINY = (
    Piece("ridge", "attack", "ridge", 1, 0),
    Piece(
        "repeats", "queries", "ridge", 1, 1, needs=("noise",),
        options={"noise": "fresh", "duplicates": "exact", "queries": [1, 4]},
    ),
)  # fmt: skip
QUICK = ["--minutes", "0.2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("sfumato.audit.run.load_suite", lambda: TINY)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert suite.load_suite()  # the real one stays what it is


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["--data", "digits", "--epochs", "2", "--limit", "300", "--device", "cpu", "--noise-std", "0.1"]
    assert main(["train", *words, "--run", str(folder)]) == 0
    return folder


def test_help_has_an_example_and_the_metrics(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sfumato audit runs/first --minutes 10 --fail-if 'psnr_worst5 > 20'" in text
    assert "mse_mean_repeated" in text


def test_a_run_is_audited_and_gates(run_folder, tmp_path, capsys):
    out = tmp_path / "audit"
    words = ["audit", str(run_folder), *QUICK, "--out", str(out), "--json", str(tmp_path / "copy.json")]
    assert main([*words, "--fail-if", "mse_mean < 1e-9", "accuracy < 0.01"]) == 3
    shown = capsys.readouterr().out
    assert "Not judged: the closed-form attacks nearest did not run" in shown
    assert "by the strongest attack, ridge" in shown
    result = json.loads((out / "audit.json").read_text())
    assert json.loads((tmp_path / "copy.json").read_text()) == result
    assert [one["holds"] for one in result["thresholds"]] == [None, None]
    assert "<html" in (out / "report.html").read_text()
    assert main([*words, "--fail-if", "psnr_worst5 > 1", "mse_mean < 1e-9"]) == 1  # nothing is attacked again
    assert "first: Failed: psnr_worst5 > 1 (psnr_worst5 is " in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "psnr_worst5 &gt; 1" in page


def test_several_targets_give_one_report(run_folder, tmp_path, capsys):
    words = ["audit", str(run_folder), "sfumato.audit.synthetic:linear_gaussian", *QUICK, "--out", str(tmp_path)]
    assert main(words) == 0
    assert "who dominates whom" in capsys.readouterr().out
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["name"] for one in comparison["subjects"]] == ["first", "linear-Gaussian channel, σ 0.1"]
    assert (tmp_path / "report.html").exists()
    folders = [str(path.parent) for path in tmp_path.glob("*/audit.json")]
    assert len(folders) == 2
    assert main(["audit", *folders, "--out", str(tmp_path / "again")]) == 0  # finished audits are read


def test_a_broken_law_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sfumato.audit.synthetic.posterior_mse", lambda covariance: 1.0)
    assert main(["audit", "sfumato.audit.synthetic:linear_gaussian", *QUICK, "--out", str(tmp_path)]) == 3
    assert "whose assumptions hold here: the attack or the bound has a bug" in capsys.readouterr().err
    assert "This audit contradicts itself" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "there is no nowhere; TARGET is a run folder"),
        (["nowhere.onnx", "--data", "digits"], "does not exist"),
        (["sfumato.models.networks:names", "--data", "digits"], "returned a tuple; return an encoder"),
        (["any", "--fail-if", "psnr_worst5 is bad"], "cannot be read; write METRIC"),
        (["any", "--fail-if", "psnr_best > 2"], "unknown metric; known are"),
        (["any", "--fail-if", "psnr_worst5 < 1"], "write 'psnr_worst5 > NUMBER'"),
        (["sfumato.audit.synthetic:linear_gaussian", "--only", "rigde"], "there is no piece 'rigde'; the pieces of an"),
        (["any", "--minutes", "0"], "--minutes: 0 has no meaning here; give a positive number"),
        (["sfumato.audit.synthetic:linear_gaussian", "--noise-std", "1"], "says what happens on the wire"),
        (["sfumato.audit.synthetic:linear_gaussian", "--fail-if", "accuracy < 1"], "needs labelled images and"),
        (["sfumato.audit.synthetic:linear_gaussian", "--data", "digits", "--size", "4"], "does not take images"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sfumato: error: ")
    assert text in error
