"""The rooms may only depend downwards, and importing the package must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sfumato"

# From top to bottom; a room may import rooms of lower layers and itself.
LAYERS = [
    {"cli"},
    {"bench"},
    {"tuning"},
    {"experiments", "audit"},
    {"serve"},
    {"report", "training", "deploy", "integrations"},
    {"watch"},
    {"defenses", "attacks"},
    {"compute", "cem"},
    {"health", "published", "split", "models", "data", "metrics"},
    {"mixture"},
    {"bounds", "schedules", "paper", "checkpoint", "evidence", "execution"},
    {"files", "importing", "modes", "ranks", "replay", "seeds"},
    {"errors"},
]
LEVEL = {room: len(LAYERS) - index for index, layer in enumerate(LAYERS) for room in layer}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "sfumato" and len(parts) > 1 else None


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "sfumato":
                names = [
                    f"sfumato.{alias.name}"
                    for alias in node.names
                    if (SOURCE / alias.name).exists() or (SOURCE / f"{alias.name}.py").exists()
                ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {room for name in names if (room := room_of(name))}
    return rooms


def violations(path: Path, own: str) -> list[str]:
    return sorted(f"{own} -> {room}" for room in imported_rooms(path) if room != own and LEVEL[room] >= LEVEL[own])


def rooms() -> list[tuple[Path, str]]:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE]
    return [(path, path.relative_to(SOURCE).parts[0].removesuffix(".py")) for path in sorted(files)]


@pytest.mark.parametrize(("path", "own"), rooms(), ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_dependencies_point_downwards(path, own):
    assert own in LEVEL, f"give the new room {own} a place in LAYERS"
    assert violations(path, own) == []


def test_the_rule_can_fail(tmp_path):
    upward = tmp_path / "bad.py"
    upward.write_text("from sfumato.training import Trainer\n")
    assert violations(upward, "bounds") == ["bounds -> training"]
    upward.write_text("from sfumato import training\n")
    assert violations(upward, "bounds") == ["bounds -> training"]


def test_training_and_attacking_need_no_optional_package():
    allowed = {
        "torch",
        "numpy",
        "safetensors",
        "filelock",
        "jsonargparse",
        "rich",
        "PIL",
        "simplejpeg",
        "jinja2",
        "matplotlib",
        "yaml",
    }
    # One compares with other libraries, the other exports and serves with them; both import them where they need them.
    lazy = {"bench", "deploy", "serve"}
    # Of one room each, imported where they are needed.
    own_optional = {"execution": {"ray", "submitit"}, "audit": {"onnxruntime"}}
    own_optional["integrations"] = {"lightning", "pytorch_lightning", "transformers"}
    for path, own in rooms():
        if own in lazy:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                root = name.split(".")[0]
                known = allowed | {"sfumato"} | set(sys.stdlib_module_names) | own_optional.get(own, set())
                assert root in known, f"{path.name} imports {root}"


def test_nothing_is_unpickled_outside_the_restricted_unpickler():
    for path, _ in rooms():
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "allow_pickle=True" not in text, path
        if path.name != "unpickle.py":
            assert "import pickle" not in text, path


def test_import_loads_torch_and_little_else():
    """Seconds depend on the machine, modules do not: nothing heavy is imported beside torch."""
    heavy = [
        "matplotlib",
        "jinja2",
        "jsonargparse",
        "rich",
        "sklearn",
        "skimage",
        "simplejpeg",
        "PIL",
        "yaml",
    ]
    code = (
        "import sys, torch; before = set(sys.modules); import sfumato; "
        f"new = set(sys.modules) - before; print(sorted(set({heavy}) & new), len(new))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, count = done.stdout.strip().rsplit(" ", 1)
    assert names == "[]"
    assert int(count) < 30
