"""`sfumato reproduce` as a researcher calls it, at the budget that takes seconds and means nothing."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment_data import filled
from pieces_of_work import wait_for

from sfumato import defenses
from sfumato.cli.main import main
from sfumato.studies.plan import RowSpec, experiments_of, load_budget, load_rows, load_spec

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


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "smoke").glob("*.json"))


@pytest.mark.slow
def test_a_row_of_table_1_is_measured_once_whatever_happens_to_those_who_measure(tmp_path, capsys, in_this_process):
    """Out of time, a damaged result, another process that has begun, its death by kill -9; then the whole table."""
    row = ("table1", "--budget", "smoke", "--rows", "none")
    (none,) = experiments_of(load_spec("table1"), load_budget("smoke"), load_rows(), wanted=["none"])
    result = tmp_path / "results" / "smoke" / f"{none.key}.json"
    result.parent.mkdir(parents=True)
    result.write_text("{ half")  # is set aside and measured again
    assert main(words(tmp_path, *row, "--minutes", "0.0001")) == 0
    assert "0 of 1 experiments are done" in capsys.readouterr().out
    assert not list((tmp_path / "work").glob("*.progress"))
    command = [sys.executable, "-m", "sfumato.cli.main", *words(tmp_path, *row, "--workers", "1")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path / "work" / f"{none.key}.progress")  # its worker holds the lock; gone when it stops
    assert main(words(tmp_path, *row)) == 0
    assert "1 are being done by another process" in capsys.readouterr().out
    other.send_signal(signal.SIGKILL)
    other.communicate()
    deadline = time.monotonic() + 60
    while True:  # its worker notices and ends, and the operating system takes its lock back
        assert main(words(tmp_path, *row, "--json", str(tmp_path / "out.json"))) == 0
        if "1 of 1 experiments are done" in (told := capsys.readouterr().out):
            break
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
    assert finished(tmp_path) == [result]
    assert result.with_name(result.name + ".damaged").exists()
    found = json.loads(result.read_text())
    assert (found["row"], found["cem"], found["hash"][:12]) == ("none", False, none.key[-12:])
    assert set(found["attacks"]) == {"decoder", "gan", "ridge", "nearest"}
    assert found["attacks"]["gan"]["test"]["mse"] > 0
    assert {"evidence", "data", "caveat", "config", "seed", "budget"} <= set(found)
    tables = tmp_path / "work" / "tables"
    (line,) = [one for one in csv.DictReader((tables / "table1-smoke.csv").open()) if one["method"] == "No_defense"]
    assert float(line["accuracy published"]) == 0.9186
    assert float(line["decoder MSE, test"]) == pytest.approx(found["attacks"]["decoder"]["test"]["mse"])
    for suffix in ("md", "tex", "html"):
        assert (tables / f"table1-smoke.{suffix}").stat().st_size > 1000
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["done"] == 1


def test_a_defence_of_ones_own_gets_two_rows(tmp_path, capsys):
    """Its results are made up; one is measured for the leaderboard."""
    plugin = tmp_path / "quiet.py"
    plugin.write_text(PLUGIN)
    defenses.load_plugin(plugin)
    row = RowSpec("quiet_row", "quiet_row", {"defense": "quiet_row"})
    spec, rows = load_spec("table1") | {"added": ["quiet_row"]}, load_rows() | {"quiet_row": row}
    experiments = experiments_of(spec, load_budget("smoke"), rows, wanted=["quiet_row"])
    filled(tmp_path / "results" / "smoke", experiments, lambda one: {"accuracy": 0.5, "mse": 0.01})
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
        (["table1", "--budget", "huge"], "--budget: 'huge' is not known; choose one of smoke, lite, day, paper"),
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
