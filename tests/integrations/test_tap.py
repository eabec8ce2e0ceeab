"""Reading the feature out of other people's networks."""

import importlib
import sys

import pytest
import torch
from loop_cases import data, plug_in, split_model
from torch import nn

from sfumato.errors import ConfigError, FeatureError
from sfumato.integrations.protection import Protection
from sfumato.integrations.tap import Tap, inputs_of, labels_of


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = split_model()
        self.calls = 0

    def forward(self, x, scale=1.0):
        out = self.split(scale * x)
        self.calls += 1
        return out


def test_it_keeps_the_clipped_feature_with_its_graph_and_once():
    holder, (x, _) = Holder(), data()
    expected = holder.split.features(x[:5])
    tap = Tap(holder)
    holder(x[:5])
    z_hat = tap.take()
    assert torch.equal(z_hat, expected)
    assert z_hat.requires_grad
    tap.close()
    holder(x[:5])
    with pytest.raises(FeatureError, match="the step did not run the module of the features"):
        tap.take()


def test_collecting_leaves_the_cloud_alone_and_the_random_numbers_and_the_modes():
    holder, (x, y) = Holder(), data()
    holder.split.cloud.eval()
    tap = Tap(holder, "split")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    state = torch.get_rng_state()

    def run(batch):
        (first,), _ = inputs_of(batch)
        return holder(first)

    features, labels = tap.collect(holder, loader, run, labels_of)
    assert torch.equal(torch.get_rng_state(), state)
    assert holder.calls == 0  # each forward was left at the cut
    assert holder.training
    assert not holder.split.cloud.training
    expected = holder.split.features(x).detach()
    order = features.sum(1).argsort(), expected.sum(1).argsort()
    torch.testing.assert_close(features[order[0]], expected[order[1]])
    assert torch.equal(labels[order[0]], y[order[1]])
    with pytest.raises(FeatureError, match="there are no batches"):
        tap.collect(holder, [], run, labels_of)


def test_what_a_batch_holds():
    batch = {"x": 1, "labels": 2, "mask": 3}
    assert (labels_of(batch), inputs_of(batch)) == (2, ((), {"x": 1, "mask": 3}))
    assert (labels_of((1, 2)), inputs_of((1, 2))) == (2, ((1,), {}))
    assert (labels_of([1]), labels_of(1), inputs_of(1)) == (None, None, ((1,), {}))
    with pytest.raises(ConfigError, match="a batch has 3 parts, and nobody says which of them are the labels"):
        labels_of(["ids", "mask", "labels"])  # the second would be taken, and where it is a small number, in silence
    assert Protection(plug_in(num_classes=None, clusters=2)).labels((1, 2, 3)) is None  # nobody asks for any


def test_mistakes_get_a_sentence():
    holder = Holder()
    with pytest.raises(ConfigError, match="Holder has no module 'splat'; model.named_modules"):
        Tap(holder, "splat")
    with pytest.raises(ConfigError, match="Linear holds 0 SplitModels; say with features="):
        Tap(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="cem is a int; give a sfumato.CEM"):
        Protection(3)
    with pytest.raises(ConfigError, match="lambda is -1"):
        Protection(plug_in(), lam=-1)
    with pytest.raises(ConfigError, match="unknown schedule of lambda 'loud'"):
        Protection(plug_in(), lam_schedule="loud")
    with pytest.raises(ConfigError, match="features is an empty name"):
        Tap(holder, "")
    for wrong in (
        {"lam": float("nan")}, {"lam": "x"}, {"lam": None}, {"refresh_every": 1.5}, {"refresh_every": "x"},
        {"labels": "y"}, {"competence": "no"}, {"features": 5}, {"features": ["enc"]}, {"inputs": 0}, {"data": 5},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*; give "):
            Protection(plug_in(), **wrong)
    rnn = nn.GRU(6, 4)
    tap = Tap(rnn, rnn)
    with pytest.raises(ConfigError, match="the module of the features gives a tuple"):
        rnn(torch.rand(2, 3, 6))
    tap.close()


@pytest.mark.parametrize(
    ("module", "packages", "extra"),
    [
        ("lightning", ("pytorch_lightning", "lightning", "lightning.pytorch"), "lightning"),
        ("huggingface", ("transformers",), "hf"),
    ],
)
def test_without_its_extra_one_sentence_names_it(module, packages, extra, monkeypatch):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"sfumato.integrations.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'sfumato\[{extra}\]'") as caught:
        importlib.import_module(f"sfumato.integrations.{module}")
    assert "\n" not in str(caught.value)
