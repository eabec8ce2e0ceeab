"""Targets small enough to audit within seconds."""

import pytest
import torch
from torch import nn

from sfumato.audit import run_audit
from sfumato.audit.suite import Piece
from sfumato.audit.synthetic import linear_gaussian
from sfumato.split import Channel, SplitModel

TINY = {"width": 8, "blocks": 1, "batch_size": 64, "precision": "fp32"}

SUITE = (
    Piece("ridge", "attack", "ridge", 0.2, 0),
    Piece("nearest", "attack", "nearest", 0.2, 0),
    Piece(
        "repeats", "queries", "ridge", 0.2, 0.5, needs=("noise",),
        options={"noise": "fresh", "duplicates": "exact", "queries": [1, 16]},
    ),
    Piece(
        "memoised", "queries", "ridge", 0.2, 0.5, needs=("noise",), settings={"draws": 1},
        options={"noise": "memoised", "duplicates": "exact", "queries": [1, 4], "train": 200},
    ),
    Piece("pairs", "knowledge", "ridge", 0.2, 0.5, options={"words": "fewer images", "shares": [1, 0.1]}),
    Piece("decoder", "attack", "decoder", 3, 0, settings=TINY, epochs=(2, 3)),
    Piece("gan", "attack", "gan", 3, 1, settings=TINY, epochs=(200_000, 300_000)),
    Piece("probes", "probe", "ridge", 0.2, 1, images=40, options={"train": 200}),
    Piece(
        "optimization", "attack", "optimization", 1, 1, images=9,
        settings={"iterations": 8, "restarts": 1, "choose_on": 2, "tv": 0.0, "prior": 1.0},
    ),
)  # fmt: skip


def tiny_subject(**changes):
    """The linear-Gaussian channel on 4x4 images."""
    return linear_gaussian(**({"side": 4, "features": 6, "train": 300, "test": 60} | changes))


def audit(folder, subject=None, minutes=2.0, suite=SUITE, **options):
    """An audit of a tiny subject."""
    subject = subject or tiny_subject()
    return run_audit(subject, subject.sets, folder, minutes=minutes, suite=suite, **options)


class Encoder(nn.Module):
    """4x4 grey images to three values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return torch.sigmoid(x.flatten(1) @ self.weight.T)


class Decoder(nn.Module):
    def forward(self, z):
        return torch.stack([z[:, 0], 1 - z[:, 0]], 1)


def encoder():
    return Encoder()


def split_model():
    return SplitModel(Encoder(), Channel(noise_std=0.1), Decoder())


def broken():
    raise RuntimeError("no weights")


def nonsense():
    return 3


def write_onnx(path, shape, kind):
    """A graph that flattens its input, called x, of this shape and type, and gives float32."""
    onnx = pytest.importorskip("onnx")
    types, helper = onnx.TensorProto, onnx.helper
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["z"], to=types.FLOAT),
    ]
    ends = (("x", getattr(types, kind), shape), ("z", types.FLOAT, ["n", "values"]))
    infos = [[helper.make_tensor_value_info(*one)] for one in ends]
    model = helper.make_model(
        helper.make_graph(nodes, "encoder", *infos), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, str(path))
    return path
