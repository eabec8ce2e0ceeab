"""The encoder for ExecuTorch: the same numbers, noise an input, no statistics of the training data."""

import json
import sys

import numpy as np
import pytest
import torch
from test_export import exported, split_model
from torch import nn

from sfumato.deploy import Manifest
from sfumato.deploy.halves import EncoderHalf
from sfumato.deploy.pte import PTE, pte_parity, to_pte
from sfumato.errors import BundleError, ConfigError
from sfumato.split import Channel, SplitModel


class NormFirst(nn.Sequential):
    """A normalisation that no convolution can take in, and one that a convolution can."""

    def __init__(self):
        super().__init__(
            nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Sigmoid()
        )


def normed():
    torch.manual_seed(0)
    model = SplitModel(NormFirst(), Channel(noise_std=0.1), nn.Linear(4 * 64, 3))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval()


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    encoder = EncoderHalf(normed()).eval()
    with pytest.raises(ConfigError, match=r"needs the package executorch; run `pip install 'sfumato\[executorch\]'`"):
        to_pte(encoder, (torch.rand(1, 3, 8, 8), torch.randn(1, 256)))


def test_executorch_computes_what_pytorch_does():
    runtime = pytest.importorskip("executorch.runtime")
    model = normed()
    statistics = [part.numpy().tobytes() for name, part in model.named_buffers() if "running" in name]
    encoder = EncoderHalf(model).eval()
    with torch.no_grad():
        image, noise = torch.rand(3, 3, 8, 8), torch.randn(3, 256)
        wanted = model.edge(image) + 0.1 * noise  # before anything is replaced
        data = to_pte(encoder, (image, noise))
    assert not any(part in data for part in statistics)
    method = runtime.Runtime.get().load_program(data).load_method("forward")
    assert method.metadata.num_inputs() == 2
    for row in range(3):
        found = method.execute([image[row : row + 1].contiguous(), noise[row : row + 1].contiguous()])[0]
        np.testing.assert_allclose(found.numpy()[0], wanted[row].numpy(), atol=1e-5)
    assert 0 <= pte_parity(data, encoder, [(image, noise)]) <= 1e-5
    encoder.channel.noise_std = 0.2
    with pytest.raises(BundleError, match="differs from PyTorch's encoder by"):
        pte_parity(data, encoder, [(image, noise)])
    with pytest.raises(BundleError, match="cannot run encoder.pte"):
        pte_parity(b"ET12" + bytes(400), encoder, [(image, noise)])


def test_it_is_part_of_the_bundle_and_a_random_operator_is_refused(tmp_path):
    pytest.importorskip("executorch.runtime")
    done = exported(tmp_path / "bundle", split_model(), executorch=True)
    assert 0 <= done.pte_parity <= 1e-5
    assert Manifest.load(done.folder).files.keys() == {"encoder.onnx", "decoder.onnx", PTE}
    (done.folder / PTE).write_bytes((done.folder / PTE).read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"encoder\.pte"):
        Manifest.load(done.folder)
    assert json.loads((done.folder / "manifest.json").read_text())["noise"]["std"] == 0.1

    class Draws(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x.flatten(1) + torch.randn_like(x.flatten(1)))

    encoder = EncoderHalf(SplitModel(Draws(), Channel(noise_std=0.1), nn.Linear(192, 3)).eval()).eval()
    with pytest.raises(BundleError, match="draws random numbers itself"):
        to_pte(encoder, (torch.rand(1, 3, 8, 8), torch.randn(1, 192)))
