"""No branch depends on the machine that runs the tests: every probe of the hardware is faked both ways.

PyTorch emulates bfloat16 where the CPU lacks it, so that the autocast of a better CPU runs everywhere.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato import attacks, compute
from sfumato.attacks import Observer
from sfumato.audit import run_audit
from sfumato.audit.suite import Piece
from sfumato.audit.synthetic import linear_gaussian
from sfumato.cli.main import main
from sfumato.compute import device_of, memory_format, use_bf16
from sfumato.cores import thread_environment, usable_cores
from sfumato.data import ImageSet
from sfumato.defenses import ResSFL
from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel
from sfumato.training import TrainConfig, train_run

TINY = {"epochs": 1, "batch_size": 16, "width": 4, "blocks": 1}
SMALL = {
    "decoder": TINY,
    "gan": TINY | {"critic_steps": 2},
    "strong": TINY,
    "posterior": TINY | {"images": 4, "samples": 2, "flow_steps": 2},
    "cloud-only": TINY,
    "optimization": {"images": 4, "iterations": 2, "restarts": 1, "choose_on": 2, "tv": 0.0, "prior": 1.0},
    "ridge": {},
    "nearest": {},
}


def images(count: int, side: int = 8) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(count))
    return ImageSet(pixels.byte(), torch.arange(count) % 2, ("a", "b"))


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def has_bf16(request, monkeypatch):
    """A CPU with bfloat16, on which even the smallest network is worth it, and one without."""
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: request.param)
    monkeypatch.setattr(compute, "_WORTH_BF16", 0)
    return request.param


@pytest.mark.parametrize("side", [8, 20], ids=["small maps", "large maps"])
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_runs_and_computes_the_same_everywhere(name, side, monkeypatch):
    edge = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Sigmoid())
    model = SplitModel(edge, Channel(noise_std=0.1), nn.Flatten())
    found = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(compute, "cpu_has_bf16", lambda has=has_bf16: has)
        monkeypatch.setattr(compute, "_WORTH_BF16", 0)
        attack = attacks.build(attacks.config_from_dict(name, SMALL[name])).fit(Observer(model, images(40, side)))
        found.append(attacks.invert(attack, model, images(6, side)).mse)
        assert all(value.dtype != torch.bfloat16 for value in attack.weights().values())
    assert float(found[0].mean()) < 0.5
    assert torch.allclose(*found, atol=1e-3)  # the order of memory still differs


@pytest.mark.parametrize("defense", [{"cem": True}, {"defense": "ressfl"}], ids=["cem", "adversary"])
def test_a_training_runs(has_bf16, defense, tmp_path):
    config = TrainConfig(epochs=2, limit=60, test_limit=20, batch_size=30, device="cpu", noise_std=0.1, **defense)
    result = train_run(config, tmp_path)
    assert result["evidence"]["precision"] == ("bf16" if has_bf16 else "fp32")
    assert (tmp_path / "model.safetensors").exists()


def test_an_inner_adversary_is_asked_with_the_shape_that_it_takes(has_bf16):
    from sfumato.defenses import Site

    defense = ResSFL(width=4, blocks=1)
    defense.attach(Site((3, 4, 4), (1, 8, 8), 2))
    defense.optimizers()
    assert defense._bf16 is has_bf16


def test_an_audit_runs(has_bf16, tmp_path):
    subject = linear_gaussian(side=4, features=6, train=120, test=20)
    suite = (
        Piece("ridge", "attack", "ridge", 1, 0),
        Piece("strong", "attack", "strong", 1, 0, settings={"width": 4, "blocks": 1}, epochs=(1, 1)),
        Piece("posterior", "attack", "posterior", 1, 0, images=9, epochs=(1, 1), settings=SMALL["posterior"]),
    )
    result = run_audit(subject, subject.sets, tmp_path, minutes=1.0, suite=suite).result
    assert result["failed"] == []
    assert {one["name"] for one in result["attacks"]} == {"ridge", "strong", "posterior"}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_takes_bfloat16_where_the_device_has_it_and_the_network_is_worth_it(monkeypatch, kind, has):
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: has == (kind == "cpu"))  # the other device never decides
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has == (kind == "cuda"))
    large, small = nn.Conv2d(64, 64, 3), nn.Conv2d(1, 1, 3)
    device = torch.device(kind)
    assert use_bf16("auto", device, large, (64, 32, 32)) is has
    assert use_bf16("auto", device, small, (1, 8, 8)) is False
    assert use_bf16("bf16", device, small, (1, 8, 8)) is True
    assert use_bf16("fp32", device, large, (64, 32, 32)) is False


@pytest.mark.parametrize("has", [True, False])
def test_the_order_of_memory(monkeypatch, has):
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: has)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert memory_format(cpu, (64, 8, 8)) is (torch.channels_last if has else torch.contiguous_format)
    assert memory_format(cpu, (3, 32, 32)) is torch.channels_last
    assert memory_format(gpu, (64, 8, 8)) is torch.channels_last


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_the_gpu_that_is_there(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_of("auto").type == ("cuda" if there else "cpu")
    if there:
        assert device_of("cuda:1") == torch.device("cuda:1")
    else:
        with pytest.raises(ConfigError, match="PyTorch sees no GPU; use --device cpu"):
            device_of("cuda")


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch, capsys):
    """Beside other work, a thread that spins keeps the one it waits for from its core."""
    for before, after in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", before or "")  # put back as it was
        if before is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        assert thread_environment(3) == {
            "OMP_NUM_THREADS": "3",
            "MKL_NUM_THREADS": "3",
            "OPENBLAS_NUM_THREADS": "3",
            "OMP_WAIT_POLICY": after,
        }
        assert main(["verify", "nowhere"]) == 2
        assert os.environ["OMP_WAIT_POLICY"] == after
    assert capsys.readouterr().err


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_the_cores_are_those_that_this_process_may_use(monkeypatch, cores, tmp_path):
    monkeypatch.setattr("sfumato.cores._CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert usable_cores() == cores
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # nobody knows
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),  # one and a half, rounded up
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "900000 100000", "pod/box/cpu.max": "300000 100000"}, 3),  # the tightest group around it counts
        ({"cpu.max": "900000 100000", "pod/cpu.max": "500000 100000", "pod/box/cpu.max": "max 100000"}, 5),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "", "cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "0"}, 8),
    ],
)
def test_a_container_s_quota_of_the_processor_counts(monkeypatch, tmp_path, files, cores):
    """The files as Linux writes them: https://docs.kernel.org/admin-guide/cgroup-v2.html, and version 1's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("sfumato.cores._CGROUPS", tmp_path)
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: "0::/pod/box\n" if self.name == "cgroup" else real(self, **how)
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores() == cores
