"""`sfumato reproduce` as a researcher calls it, at the budget that takes seconds and means nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment_data import filled

from sfumato.cli.main import main
from sfumato.studies.plan import experiments_of, load_budget, load_rows, load_spec

PLUGIN = """
from sfumato.defenses import Defense, register

@register
class Quiet(Defense):
    name = "quiet_row"

    def penalty(self, batch):
        return 0.1 * batch.features.square().mean()
"""


def words(folder: Path, *more: str) -> list[str]:
    return ["reproduce", *more, "--results", str(folder / "results"), "--work", str(folder / "work")]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfumato.cli.main", *words(folder, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "smoke").glob("*.json"))


@pytest.mark.slow
def test_rows_of_table_1_with_both_attacks_survive_kill_9(tmp_path, capsys):
    rows = ("table1", "--budget", "smoke", "--rows", "none", "patrol")
    process = start(tmp_path, *rows, "--workers", "1")
    deadline = time.monotonic() + 200
    while not finished(tmp_path) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1.0)  # its worker notices and ends
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    assert 1 <= len(before) < 3
    assert main(words(tmp_path, *rows, "--json", str(tmp_path / "out.json"))) == 0
    assert "3 of 3 experiments are done" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())  # nothing was done twice
    results = [json.loads(path.read_text()) for path in finished(tmp_path)]
    assert {(one["row"], one["cem"]) for one in results} == {("none", False), ("patrol", False), ("patrol", True)}
    for result in results:
        assert set(result["attacks"]) == {"decoder", "gan", "ridge", "nearest"}
        assert result["hash"][:12] in result["key"]
        assert {"evidence", "data", "caveat", "config", "seed", "budget"} <= set(result)
    patrol = next(result for result in results if result["row"] == "patrol" and not result["cem"])
    assert patrol["attacks"]["gan"]["test"]["mse"] > 0
    tables = tmp_path / "work" / "tables"
    (line,) = [one for one in csv.DictReader((tables / "table1-smoke.csv").open()) if one["method"] == "PATROL"]
    assert float(line["accuracy published"]) == 0.8958
    assert float(line["decoder MSE, test"]) == pytest.approx(patrol["attacks"]["decoder"]["test"]["mse"])
    for suffix in ("md", "tex", "html"):
        assert (tables / f"table1-smoke.{suffix}").stat().st_size > 1000
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["done"] == 3
    assert main(words(tmp_path, "table1", "--budget", "smoke", "--show")) == 0
    assert "PATROL" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_on_one_experiment_do_it_once_where_a_stopped_call_left_it(tmp_path, capsys):
    rows = ("table1", "--budget", "smoke", "--rows", "none")
    assert main(words(tmp_path, *rows, "--minutes", "0.0001")) == 0
    assert "0 of 1 experiments are done" in capsys.readouterr().out
    (none,) = experiments_of(load_spec("table1"), load_budget("smoke"), load_rows(), wanted=["none"])
    victim = tmp_path / "results" / "smoke" / f"{none.key}.json"
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("{ half")  # a damaged result is set aside and done again
    both = [start(tmp_path, *rows) for _ in range(2)]
    texts = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert finished(tmp_path) == [victim]
    assert json.loads(victim.read_text())["row"] == "none"
    assert victim.with_name(victim.name + ".damaged").exists()
    assert sum("test MSE decoder" in text for text in texts) >= 1


def test_a_defence_of_ones_own_gets_two_rows(tmp_path, capsys):
    plugin = tmp_path / "quiet.py"
    plugin.write_text(PLUGIN)
    arguments = ("table1", "--budget", "smoke", "--plugin", str(plugin), "--rows", "quiet_row")
    assert main(words(tmp_path, *arguments)) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 experiments are done" in printed
    assert "quiet_row+CEM" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--budget", "lite"], "cifar10 needs a folder: pass data_dir"),
        (["table2", "--budget", "lite", "--data-dir", "EMPTY"], "cs231n.stanford.edu/tiny-imagenet-200.zip"),
        (["table1", "--budget", "huge"], "unknown budget 'huge'; choose one of smoke, lite, day, paper"),
        (["table11"], "unknown table or figure 'table11'; choose one of"),
        (["table1", "--budget", "smoke", "--rows", "resfl"], "table1 has no row 'resfl'; its rows are"),
        (["table1", "--minutes", "-1"], "give a positive number"),
        (["table1", "--plugin", "missing.py"], "cannot read the plugin missing.py"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, capsys, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(words(tmp_path, *[str(empty) if word == "EMPTY" else word for word in arguments])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sfumato: error: ")
    assert error.count("\n") == 1


def test_show_of_an_empty_store_shows_the_published_numbers(tmp_path, capsys):
    assert main(words(tmp_path, "table1", "fig5", "--show")) == 0
    printed = capsys.readouterr().out
    assert "90.87" in printed
    assert "nothing has been measured" in printed


def test_results_of_other_images_are_refused(tmp_path, capsys):
    (none,) = experiments_of(load_spec("table1"), load_budget("smoke"), load_rows(), wanted=["none"])
    filled(tmp_path / "results" / "smoke", [none], lambda one: {"accuracy": 0.5, "mse": 0.01})
    assert main(words(tmp_path, "table1", "--budget", "smoke", "--rows", "none", "bottleneck")) == 2
    assert "was measured on other images" in capsys.readouterr().err


def test_table_9_is_timed_once(tmp_path, capsys):
    assert main(words(tmp_path, "table9", "--budget", "smoke", "--device", "cpu")) == 0
    assert "1 of 1 experiments are done" in capsys.readouterr().out
    (path,) = finished(tmp_path)
    assert path.name == "table9-smoke.json"
    when = path.stat().st_mtime_ns
    assert main(words(tmp_path, "table9", "--budget", "smoke", "--show")) == 0
    assert "PATROL (pruned)" in capsys.readouterr().out
    assert main(words(tmp_path, "table9", "--budget", "smoke")) == 0
    assert path.stat().st_mtime_ns == when
