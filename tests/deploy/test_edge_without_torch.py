"""The device's side carries no torch: the files of its distribution are complete, and need three packages."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from edge_support import make_bundle, pixels_of
from PIL import Image

ROOT = Path(__file__).parents[2]
EDGE = ROOT / "packaging" / "edge"

OF_THE_PACKAGES = {"_cffi_backend"}  # what cryptography in turn depends on

# Refuses every import of a package that is neither named nor part of Python.
GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in {allowed} and root not in sys.stdlib_module_names:
            raise ImportError(f"{{root}} is not on this device")
sys.meta_path.insert(0, Guard())
"""
QUERY = """
import sys
from sfumato.deploy import EdgeClient
client = EdgeClient(sys.argv[1], device_key=sys.argv[2])
print(client.predict(sys.argv[3]).label, len(client.release([sys.argv[3]]).tobytes()), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("bundle"))
    Image.fromarray(pixels_of()).save(folder / "image.png")
    return folder


def project() -> dict:
    return tomllib.loads((EDGE / "pyproject.toml").read_text())


def ask(bundle: Path, source: Path, allowed: set[str]) -> subprocess.CompletedProcess:
    code = GUARD.format(allowed=allowed | {"sfumato"} | OF_THE_PACKAGES) + QUERY
    words = [str(bundle), str(bundle / "device.key"), str(bundle / "image.png")]
    environment = {"PYTHONPATH": str(source), "PATH": ""}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=bundle)


def packages_of(project: dict) -> set[str]:
    names = {word.partition(">")[0] for word in project["project"]["dependencies"]}
    return {"PIL" if name == "pillow" else name for name in names}


def test_the_listed_files_answer_with_the_listed_packages_alone(bundle, tmp_path):
    for source, target in project()["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        here, there = (EDGE / source).resolve(), tmp_path / target
        there.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if here.is_dir() else shutil.copyfile)(here, there)
    packages = packages_of(project())
    assert packages == {"numpy", "onnxruntime", "cryptography", "msgspec", "PIL"}
    done = ask(bundle, tmp_path, packages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["12", "False"]
    # Without one of them it says so and answers nothing, so the guard works.
    for missing in ("cryptography", "onnxruntime", "msgspec", "PIL"):
        refused = ask(bundle, tmp_path, packages - {missing})
        assert refused.returncode != 0
        assert "Error: " in refused.stderr.splitlines()[-1]
        assert refused.stdout == ""


def test_the_whole_package_asks_without_torch_as_well(bundle):
    done = ask(bundle, ROOT / "src", packages_of(project()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_the_command_line_asks_without_torch(bundle):
    code = (
        "import sys; sys.modules['torch'] = None; from sfumato.cli.main import main; "
        "code = main(sys.argv[1:]); assert 'sfumato.defenses' not in sys.modules; sys.exit(code)"
    )
    words = ["query", str(bundle), str(bundle / "image.png"), "--offline", "--device-key", str(bundle / "device.key")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "class " in done.stdout


def test_both_projects_ask_for_the_same_packages():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for word in project()["project"]["dependencies"]:
        assert word in extras["edge"] + core
