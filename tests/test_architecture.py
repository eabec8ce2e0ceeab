"""The rooms may only depend downwards, and importing the package must stay light."""

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sfumato"

# From top to bottom; a room may import rooms of lower layers and itself.
LAYERS = [
    {"cli"},
    {"bench"},
    {"protect"},
    {"studies", "audit"},
    {"serve"},
    {"report", "training", "deploy"},
    {"integrations"},
    {"defenses", "attacks"},
    {"compute", "cem"},
    {"split", "models", "data", "metrics"},
    {"mixture"},
    {"bounds", "paper", "checkpoint", "provenance"},
    {
        "cores",
        "decode",
        "files",
        "importing",
        "model_card",
        "cuda_graph",
        "noise",
        "distributed",
        "torch_utils",
        "seeds",
        "settings",
    },
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
    own_optional = {"studies": {"ray", "submitit"}, "audit": {"onnx", "onnxruntime", "msgspec"}}
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


# Who measures a model borrows its mode, `modes.evaluating`, and who trains one wakes it, `modes.wake`: both leave alone
# what somebody froze. These may switch by hand, because the module is their own and nobody has frozen anything in it.
SWITCH_BY_HAND = {
    "torch_utils.py": "the one way",
    "training/trainer.py": "hands over what it has trained in evaluation mode",
    "training/run.py": "a model read from a file",
    "split/saved.py": "a model read from a file",
    "audit/target.py": "a model read from a file",
    "integrations/huggingface.py": "what the Trainer itself does before every step",
    "studies/efficiency.py": "networks made to be timed",
    "bench/serving.py": "networks made to be timed",
}


def switches(text: str) -> list[str]:
    """Calls of `.eval()` and `.train(...)`, docstrings and comments not counted."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("eval", "train")
    ]


def test_nobody_switches_modes_by_hand():
    found = {path.relative_to(SOURCE).as_posix() for path, _ in rooms() if switches(path.read_text())}
    assert found == set(SWITCH_BY_HAND)
    assert switches("model.train(was_training)\nnet.eval()") == ["model.train(was_training)", "net.eval()"]


def test_import_loads_torch_and_little_else():
    """Seconds depend on the machine, modules do not: nothing heavy is imported beside torch."""
    heavy = [
        "matplotlib",
        "jinja2",
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


# These lists only shrink: whoever mends an entry takes it out.
TWIN_NAMES = {"Dropout", "Fit"}
LONG_FILES: set[str] = set()


def sources() -> list[tuple[str, str]]:
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if not path.name.endswith("_pb2.py")]
    return [(path.relative_to(SOURCE).as_posix(), path.read_text()) for path in paths]


def class_names(files: list[tuple[str, str]]) -> set[str]:
    """Names of classes that several files define."""
    found = defaultdict(set)
    for file, text in files:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(file)
    return {name for name, where in found.items() if len(where) > 1}


def test_a_class_name_means_one_thing():
    assert class_names(sources()) == TWIN_NAMES
    assert class_names([("a.py", "class A: ..."), ("b.py", "class A: ..."), ("c.py", "class B: ...")]) == {"A"}


def test_no_file_is_longer_than_400_lines():
    assert {file for file, text in sources() if len(text.splitlines()) > 400} == LONG_FILES


@pytest.mark.parametrize("room", sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")))
def test_a_room_exports_what_it_says(room):
    tree, module = ast.parse((SOURCE / room / "__init__.py").read_text()), importlib.import_module(f"sfumato.{room}")
    own = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"sfumato.{room}.")
        for alias in node.names
    }
    names = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(names) == len(set(names))
    if not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):  # it only hands on
        assert set(names) == own


QUOTING: set[str] = set()


def test_one_function_shortens_what_a_library_says():
    """`sfumato.errors.first_line`; an error without a text broke some of its copies."""
    found = {file for file, text in sources() if "splitlines()[0]" in text or "splitlines() or [" in text}
    assert found - {"errors.py"} <= QUOTING
