"""Every example in a docstring gives what it says, and every public name has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import sfumato
from sfumato import attacks, bounds

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text())
MODULES = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("room", [sfumato, bounds, attacks], ids=lambda room: room.__name__)
def test_every_public_name_has_an_example(room):
    named = {name: getattr(room, name) for name in room.__all__}
    without = [name for name, one in named.items() if callable(one) and ">>> " not in (one.__doc__ or "")]
    assert without == []
