"""The image's packages, and what a server imports."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from serve_support import make_bundle

from sfumato.cli.commands import parser_of

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "packaging" / "server"

# Starts and stops a server while every package of `sfumato` that the image lacks is out of reach.
SCRIPT = """
import asyncio, sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from pathlib import Path
import sfumato.cli.main, sfumato.cli.serve
from sfumato.serve import ServeConfig, supervisor
from sfumato.serve.door import Door, listen, loop_with
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.worker import Worker

config = ServeConfig((Path(sys.argv[1]),), port=0, drain_seconds=0)
door = Door(config, 100)

async def work():
    worker = Worker(config, Generation.read(config), door, Log())
    await worker.start(listen(config.host, 0))
    await worker.stop()

with asyncio.Runner(loop_factory=loop_with(door)) as runner:
    runner.run(work())
"""


def names(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def lines():
    text = (SERVER / "requirements.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_holds_the_extra_and_what_the_command_line_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["serve"]
    core = [line for line in project["dependencies"] if names([line]) <= {"numpy", "pyyaml"}]
    assert set(lines()) == {*extra, *core}


def test_a_server_needs_nothing_beyond_the_image(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]["export"]
    modules = {"pillow": "PIL"}
    missing = names([*project["dependencies"], *extras]) - names(lines())
    assert {"torch", "matplotlib", "onnx"} <= missing
    words = [sys.executable, "-c", SCRIPT, str(bundle), ",".join(modules.get(name, name) for name in missing)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_manifest_of_the_cluster_and_the_image_agree():
    container = (SERVER / "Containerfile").read_text(encoding="utf-8")
    (resource,) = yaml.safe_load_all((SERVER / "kserve.yaml").read_text(encoding="utf-8"))
    (spec,) = resource["spec"]["predictor"]["containers"]
    port = str(spec["ports"][0]["containerPort"])
    assert f"EXPOSE {port}" in container
    assert spec["args"][spec["args"].index("--port") + 1] == port
    assert f'"--port", "{port}"' in container
    for command in (spec["args"], re.findall(r'"([^"]*)"', container.rpartition("CMD ")[2])):
        assert command[0] == "/mnt/models"
        parsed = parser_of("serve").read(command)
        assert parsed.host == "0.0.0.0"
    for path in re.findall(r"COPY (?:--from=\S+ )?(\S+) \S+$", container, re.M):
        assert path.startswith("/") or (ROOT / path).exists(), path
    drain = float(spec["args"][spec["args"].index("--drain-seconds") + 1])
    assert resource["spec"]["predictor"]["terminationGracePeriodSeconds"] >= drain + 30
