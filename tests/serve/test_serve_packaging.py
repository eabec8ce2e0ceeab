"""The image's packages, the generated messages, and what a server imports."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from serve_support import make_bundle

from sfumato.cli.serve import parser

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "packaging" / "server"

# Starts and stops a server while every package of `sfumato` that the image lacks is out of reach.
SCRIPT = """
import asyncio, sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from pathlib import Path
import sfumato.cli.main, sfumato.cli.serve
from sfumato.deploy.server import ServeConfig
from sfumato.deploy.server.service import Service

async def work():
    service = Service(ServeConfig((Path(sys.argv[1]),), port=0, grpc_port=0, drain_seconds=0))
    await service.start()
    await service.stop()

asyncio.run(work())
"""


def names(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def lines():
    text = (SERVER / "requirements.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_holds_the_extra_and_what_the_command_line_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["serve"]
    core = [line for line in project["dependencies"] if names([line]) <= {"numpy", "jsonargparse", "pyyaml"}]
    assert set(lines()) == {*extra, *core}


def test_a_server_needs_nothing_beyond_the_image(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name in ("export", "bench") for line in project["optional-dependencies"][name]]
    modules = {"pillow": "PIL", "scikit-learn": "sklearn"}
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
        parsed = parser().read(command)
        assert parsed.host == "0.0.0.0"
    for path in re.findall(r"COPY (?:--from=\S+ )?(\S+) \S+$", container, re.M):
        assert path.startswith("/") or (ROOT / path).exists(), path
    drain = float(spec["args"][spec["args"].index("--drain-seconds") + 1])
    assert resource["spec"]["predictor"]["terminationGracePeriodSeconds"] >= drain + 30


def test_the_committed_messages_are_those_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools")
    words = [sys.executable, "-m", "sfumato.deploy.server.protocol", str(tmp_path)]
    subprocess.run(words, check=True, capture_output=True)
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        fresh, committed = (
            [
                line
                for line in (root / "sfumato/deploy/server/protocol" / name).read_text().splitlines()
                if not re.match(r"# Protobuf Python|    \d+,|    '',", line)
            ]
            for root in (tmp_path, ROOT / "src")
        )
        assert fresh == committed
