"""`sfumato cuts` as a user calls it, on networks in files of the user's own."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from sfumato.cli.console import console
from sfumato.cli.main import main

ROOT = Path(__file__).parents[2]
NETS = """
import torch
from torch import nn

class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a_layer_with_a_name_that_is_too_long_for_a_narrow_terminal = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.sigmoid(self.a_layer_with_a_name_that_is_too_long_for_a_narrow_terminal(x))
        return self.last((x + self.inner(x)).mean((2, 3)))

def alone():
    return Skip()

def pair():
    return Skip(), torch.rand(3, 3, 6, 6)

def broken():
    raise OSError("no weights here")

def number():
    return 3, 4

ready = Skip()
text = "Skip"
"""


@pytest.fixture
def _nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_a_user", raising=False)


@pytest.mark.usefixtures("_nets")
def test_the_table_and_the_figures(tmp_path, capsys):
    assert main(["cuts", "nets_of_a_user:pair", "--all", "--json", "out.json"]) == 0
    text = capsys.readouterr().out
    long = "a_layer_with_a_name_that_is_too_long_for_a_narrow_terminal"
    (row,) = [line for line in text.splitlines() if line.startswith(f"│ {long} ")]
    # Multiply-adds by hand: 36 positions x 8 x 3 x 9, then 36 x 8 x 8, then 8 x 2.
    share = 36 * 8 * 27 / (36 * 8 * 27 + 36 * 64 + 16)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["8x6x6", "1,152", "288", f"{share:.1%}", "224", "none"]
    assert "no cut at 'inner': another tensor crosses there, the result of sigmoid in the model's forward" in text
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["target"] == "nets_of_a_user:pair"
    assert written["input_shape"] == [3, 6, 6]
    first, inner, last = written["cuts"]
    assert first["layer"] == long
    assert (first["shape"], first["dimensions"], first["bytes"], first["bytes_8bit"]) == ([8, 6, 6], 288, 1152, 288)
    assert first["edge_flops"] == 2 * 36 * 8 * 27
    assert first["share"] == pytest.approx(share)
    assert first["edge_parameters"] == 8 * 27 + 8
    assert (inner["possible"], last["possible"]) == (False, True)
    assert "cut at 'a_layer" in inner["obstacle"]


@pytest.mark.usefixtures("_nets")
@pytest.mark.parametrize("name", ["alone", "ready"])
def test_an_example_from_a_shape(name, capsys):
    for shape in ("3,5,5", "3x5x5"):
        assert main(["cuts", f"nets_of_a_user:{name}", "--input-shape", shape]) == 0
        out = capsys.readouterr().out
        assert "8x5x5" in out
        assert "1 more layers" not in out
        assert "1 more layer has no cut behind it; --all lists it with the reason" in out


@pytest.mark.usefixtures("_nets")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nets_of_a_user"], "give package.module:function, such as mypackage.models:build"),
        (["not_there:build"], "not_there:build cannot be imported (No module named 'not_there')"),
        (["nets_of_a_user:missing"], "has no attribute 'missing'"),
        (["nets_of_a_user:text"], "is a str; name a function that returns a model"),
        (["nets_of_a_user:broken"], "nets_of_a_user:broken raised OSError: no weights here"),
        (["nets_of_a_user:number"], "gave a int and a int; return a model (torch.nn.Module)"),
        (["nets_of_a_user:alone"], "gives a model without an example; name the shape of one input"),
        (["nets_of_a_user:alone", "--input-shape", "3,-1"], "--input-shape is '3,-1'; give positive whole numbers"),
        (["nets_of_a_user:alone", "--input-shape", "3,0"], "--input-shape is '3,0'; give positive whole numbers"),
        (["nets_of_a_user:alone", "--input-shape", "4,9,9"], "the model does not run on the example input: "),
    ],
)
def test_mistakes_get_one_sentence(words, message, capsys):
    assert main(["cuts", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("sfumato: error: ")
    assert said.count("\n") == 1


def test_the_page_shows_what_the_command_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(console, "width", 80)
    assert main(["cuts", "docs.examples.small_resnet:build", "--all"]) == 0
    page = (ROOT / "docs" / "cut-your-model.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert printed.count("│") > 50
    for line in printed.splitlines():
        assert line.rstrip() in page


def test_the_python_of_the_page_runs():
    page = (ROOT / "docs" / "cut-your-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    names: dict[str, object] = {}
    assert len(blocks) == 4
    for block in blocks:
        if "transformers" in block:
            pytest.importorskip("transformers")
        exec(block, names)
    assert names["cloud"](names["edge"](torch.rand(3, 6))).shape == (3, 2)
