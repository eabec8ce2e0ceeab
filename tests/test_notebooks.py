"""The notebooks run from top to bottom, and are notebooks."""

import importlib.util
import json
import re
import warnings
from pathlib import Path

import pytest

from sfumato.errors import SfumatoWarning

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "docs/run_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def shortened(notebook: dict) -> dict:
    """The same with trainings of three epochs, which put out the same kinds of things."""
    cells, found = [], 0
    for cell in notebook["cells"]:
        source, count = re.subn(r"\bepochs=\d+", "epochs=3", "".join(cell["source"]))
        cells.append(cell | {"source": [source]})
        found += count if cell["cell_type"] == "code" else 0
    assert found == 1
    return notebook | {"cells": cells}


def shape_of(outputs: list) -> list:
    """Which kinds of output a cell has; their content depends on the machine."""
    return [(one["output_type"], sorted(one.get("data", {}))) for one in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_puts_out_what_it_shows(path, runner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # short trainings deserve their warnings
        done = runner.execute(shortened(stored), path.name)
    for one, other in zip(stored["cells"], done["cells"], strict=True):
        if one["cell_type"] == "code":
            assert shape_of(one["outputs"]) == shape_of(other["outputs"]), "".join(one["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_of_moderate_size(path, runner):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    assert path.stat().st_size < 200_000
    assert path.read_text(encoding="utf-8") == runner.dump(notebook)
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `python docs/run_notebook.py` on it"
    assert not any(output["output_type"] == "error" for cell in notebook["cells"] for output in cell.get("outputs", []))


def test_there_are_two():
    assert {path.stem for path in NOTEBOOKS} == {"protect", "audit"}


def test_the_runner_gives_text_values_figures_and_errors(runner):
    def cell(source: str) -> dict:
        return {"cell_type": "code", "source": [source], "outputs": [], "execution_count": None}

    sources = [
        "x = 3\nprint('a')\nx + 1",
        "x;",
        "from matplotlib import pyplot as plt\nplt.plot([1, 2]);",
        "x = None\nx",
    ]
    cells = runner.execute({"cells": [cell(source) for source in sources]})["cells"]
    first = cells[0]["outputs"]
    assert first[0]["text"] == ["a\n"]
    assert first[1]["data"]["text/plain"] == ["4"]
    assert cells[1]["outputs"] == cells[3]["outputs"] == []
    assert cells[2]["outputs"][0]["data"]["image/png"].startswith("iVBORw0KGgo")
    with pytest.raises(ZeroDivisionError):
        runner.execute({"cells": [cell("1 / 0")]})
