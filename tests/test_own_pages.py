"""The pages for people with a model and a loop of their own: every block runs, in the order of the page."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NEEDS = {"lightning": "pytorch_lightning", "hf": "accelerate", "tensorboard": "tensorboard"}


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)


def missing(block: str) -> bool:
    """Whether a block needs an extra that is not installed; its first line says which."""
    wanted = re.match(r"# extra: (\w+)\n", block)
    if wanted is None:
        return False
    try:
        importlib.import_module(NEEDS[wanted[1]])
    except ImportError:
        return True
    return False


@pytest.mark.parametrize("page", ["own-loop.md", "watch.md"])
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)  # as torchrun does for one process
    names: dict[str, Any] = {"__name__": page}
    ran = 0
    for block in blocks(page):
        if not missing(block):
            exec(compile(block, page, "exec"), names)
            ran += 1
    assert ran >= len(blocks(page)) - len(NEEDS)
    if page == "watch.md":
        assert len((tmp_path / "runs/own/metrics.jsonl").read_text().splitlines()) >= 2


def test_the_page_of_the_own_model_shows_the_script_and_its_other_blocks_run(tmp_path, monkeypatch):
    first, *rest = blocks("own-model.md")
    assert first == (DOCS / "examples/own_model.py").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["own_model.py", str(tmp_path / "own")])
    names: dict[str, Any] = {"__name__": "own"}
    exec(compile(first.replace("epochs = 12", "epochs = 1"), "own-model.md", "exec"), names)
    for block in rest:
        exec(compile(block, "own-model.md", "exec"), names)
    assert names["answers"].shape == (4, 10)
