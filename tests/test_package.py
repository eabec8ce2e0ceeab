"""What is shipped, what the workflows run, and what the pages promise about both."""

import fnmatch
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from sfumato import checkpoint, data
from sfumato.audit import schema
from sfumato.audit.schema import FORMAT as AUDIT_FORMAT
from sfumato.deploy.manifest import SCHEMA_VERSION

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sfumato"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".avif"}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_file_of_the_package_is_in_the_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["sfumato"]
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE).as_posix()
        if path.is_dir() or "__pycache__" in name:
            continue
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{name} lies in no package, so no wheel has it"
        else:
            found = any(
                fnmatch.fnmatch(name, one) and one.count("/") == name.count("/") for one in [*patterns, "py.typed"]
            )
            assert found, f"{name} is in no pattern of package-data"
    assert "py.typed" in patterns


def test_the_version_is_stated_once_and_the_same(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("check_version", ROOT / "packaging/check_version.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    version = PROJECT["project"]["version"]
    assert set(check.versions().values()) == {version}
    monkeypatch.setattr("sys.argv", ["check_version.py", f"v{version}"])
    assert check.main() == 0
    monkeypatch.setattr("sys.argv", ["check_version.py", "v99.0"])
    assert check.main() == 1
    assert "the tag is 99.0" in capsys.readouterr().err


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
class TestWorkflows:
    def test_actions_are_pinned_to_commits(self, path):
        for line in page(path).splitlines():
            if "uses:" in line:
                assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line

    def test_a_job_may_little_and_ends(self, path):
        flow = yaml.safe_load(page(path))
        assert flow["permissions"] == {"contents": "read"}
        for name, job in flow["jobs"].items():
            assert job["timeout-minutes"] <= 60, name
            writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
            assert writes <= {"pages", "id-token", "attestations"}, name
            # What has rights does not run the project's code.
            assert not writes or not any("run" in step for step in job["steps"]), name

    def test_its_lines_name_what_exists_and_need_no_make(self, path):
        extras = PROJECT["project"]["optional-dependencies"]
        for job in yaml.safe_load(page(path))["jobs"].values():
            for line in [step["run"] for step in job["steps"] if "run" in step]:
                assert not re.match(r"make\b", line), line
                for word in re.findall(r"(?:\./)?(?:tests|packaging|src|docs)/[\w./]+", line):
                    assert (ROOT / word).exists(), line
                for names in re.findall(r'"\.\[(.*?)\]"', line):
                    assert set(names.split(",")) <= set(extras), line

    def test_expressions_from_outside_are_no_part_of_a_script(self, path):
        for job in yaml.safe_load(page(path))["jobs"].values():
            for step in job["steps"]:
                assert "${{" not in step.get("run", ""), step


def test_the_three_systems_are_tested():
    jobs = yaml.safe_load(page(".github/workflows/test.yml"))["jobs"]
    assert set(jobs["edge"]["strategy"]["matrix"]["os"]) == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert {"macos-latest", "windows-latest"} <= set(jobs["core"]["strategy"]["matrix"]["os"])


def test_the_docs_are_built_with_what_the_extra_names():
    (line,) = [line for line in page(".github/workflows/docs.yml").splitlines() if "pip install" in line]
    assert re.findall(r'"([^"]+)"', line) == PROJECT["project"]["optional-dependencies"]["docs"]


def test_issue_forms_are_forms():
    forms = [one for one in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if one.stem != "config"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(page(path))
        assert {"name", "description", "body"} <= set(form), path.name
        fields = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(fields) == len(set(fields)) > 0


def test_the_page_of_stability_has_the_versions_of_the_code():
    rows = {row.split("|")[1].strip(): row for row in page("docs/api/index.md").splitlines() if row.startswith("| ")}
    stated = {name: row.split("|")[3].strip() for name, row in rows.items()}
    assert stated["weights and checkpoints in a run folder"] == str(checkpoint.FORMAT)
    assert stated["`audit.json`"] == str(AUDIT_FORMAT)
    assert schema()["properties"]["format"] == {"enum": [AUDIT_FORMAT]}
    assert stated["`manifest.json` of a bundle"] == str(SCHEMA_VERSION)


def test_the_rooms_are_public_or_named_as_not():
    text = page("docs/api/index.md")
    inner = set(re.findall(r"`(\w+)`", text[text.index("Not public") : text.index("the text of messages")]))
    shown = set(re.findall(r"^::: sfumato\.(\w+)", "\n".join(map(page, ROOT.glob("docs/api/*.md"))), re.M))
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert inner & shown == set()
    assert rooms - {"__init__", "compute", "evidence"} == inner | shown


def test_the_map_of_the_house_has_every_room():
    text = page("CONTRIBUTING.md")
    table = text[text.index("| layer |") : text.index("Three rules")]
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(re.findall(r"`(\w+)`", table))


def test_every_data_set_has_its_terms():
    text = page("docs/own-data.md").lower().replace("-", "")
    for name in set(data.names()) - {"folder", "hub"}:
        assert name.replace("-", "") in text, name
    assert "celeba" in text


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git repository")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_photograph_is_tracked():
    """Faces least of all. Pictures that may be here are named; those inside other files are digits of the notebooks."""
    files = tracked()
    pictures = {path.relative_to(ROOT).as_posix() for path in files if path.suffix.lower() in PICTURES}
    cifar = {name for name in pictures if re.match(r"results/\w+/cifar100?-[^/]+\.png$", name)}
    assert pictures - cifar <= {"docs/assets/reconstructed.png"}
    arrays = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in (".npz", ".npy", ".safetensors")}
    assert arrays == {"src/sfumato/data/digits.npz"}
    archives = (".zip", ".gz", ".tar", ".tgz", ".parquet", ".h5", ".pkl", ".pt", ".pth", ".onnx", ".pdf")
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        assert path.suffix not in archives, name
        head = path.read_bytes()
        assert not head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")) or name in pictures, name
        if path.suffix not in (".py", ".ipynb"):
            assert b"data:image" not in head, name
