"""From other people's networks to a bundle with shaped noise, by the commands alone."""

import json

import numpy as np
import pytest
import torch
from edge_support import make_bundle
from PIL import Image
from torch import nn

import sfumato
from sfumato.cli.main import main
from sfumato.defenses.shapes import propose
from sfumato.deploy import EdgeClient
from sfumato.deploy.manifest import NOISE

QUICK = ["--decoder-epochs", "0", "--attacker-images", "64", "--judged-images", "32"]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr("sfumato.protect.run._STEPS", 5)
    monkeypatch.setattr("sfumato.protect.run._DRAWS", 2)
    monkeypatch.setattr("sfumato.protect.run.propose", lambda *given: propose(*given)[:1] + propose(*given)[-1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """96 small colour photographs of nothing."""
    place = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(96):
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BILINEAR).save(place / f"{index}.png")
    return place


def made(name: str) -> tuple[nn.Module, nn.Module]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=8, num_labels=4,
        )  # fmt: skip
        model, kind = transformers.ViTForImageClassification(config).eval(), "ViTLayer"
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
        )
        model, kind = transformers.ResNetForImageClassification(config).eval(), "ResNetStage"
    layer = next(name for name, part in model.named_modules() if type(part).__name__ == kind)
    return sfumato.split_at(model, layer, torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_network_of_hugging_face_from_weights_to_bundle(name, folder, tmp_path):
    with torch.random.fork_rng():
        edge, cloud = made(name)
    model = sfumato.SplitModel(edge, sfumato.Channel(clip_norm=50.0), cloud).eval()
    frozen = sfumato.save_split(model, tmp_path / "frozen", example_input=torch.rand(2, 3, 16, 16))
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    words = [str(frozen), "--data", str(folder), "--lose-at-most", "10", "--out", str(out), *QUICK]
    assert main(["protect", *words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    lines = {line["name"]: line for line in found["shapes"]}
    assert set(lines) == {"white", "low"}
    assert lines[found["chosen"]]["identified"] <= lines["white"]["identified"]
    assert "What is not guaranteed" in (out / "report.html").read_text()
    assert main(["export", str(out), "--out", str(bundle), "--images", "0", "--quantize-bits", "12"]) == 0
    with EdgeClient(bundle, device_key=bytes(range(32))) as client:
        assert (client.manifest.files.get(NOISE) is not None) == (found["chosen"] != "white")
        answers = client.predict_batch([np.zeros((16, 16, 3), np.uint8)])
    assert len(answers) == 1


def test_a_pair_of_onnx_files(folder, tmp_path, capsys):
    """No gradients: sensitivities by differences; the numbers of the noise, and a sentence that says why no more."""
    make_bundle(tmp_path, bits=None)
    (tmp_path / "images").mkdir()
    for path in folder.iterdir():
        Image.open(path).resize((5, 6)).save(tmp_path / "images" / path.name)
    target = f"{tmp_path / 'encoder.onnx'},{tmp_path / 'decoder.onnx'}"
    words = ["--data", str(tmp_path / "images"), "--lose-at-most", "10", "--out", str(tmp_path / "out"), *QUICK]
    assert main(["protect", target, *words, "--retune-cloud"]) == 2
    assert "no weights that can be trained" in capsys.readouterr().err
    assert main(["protect", target, *words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line["name"] for line in found["shapes"]] == ["white", "low"]
    assert (tmp_path / "out" / "noise.f32").stat().st_size % (4 * 12) == 0
    assert "ONNX files cannot be recorded" in capsys.readouterr().out
