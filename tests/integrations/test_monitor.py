"""The figures of an epoch against other libraries, and where they go."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import sfumato
from sfumato.attacks.linear import STRENGTHS
from sfumato.errors import ConfigError
from sfumato.integrations import EpochFigures, TensorBoard, ridge_error, told
from sfumato.training import TrainConfig, train_run

G = torch.Generator().manual_seed(0)
X, X_NEW = torch.rand(120, 2, 4, generator=G), torch.rand(60, 2, 4, generator=G)
Y, Y_NEW = torch.arange(120) % 3, torch.arange(60) % 3


def split_model(outputs=3, noise_std=0.05):
    torch.manual_seed(0)
    edge = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Sigmoid())
    return sfumato.SplitModel(edge, sfumato.Channel(noise_std=noise_std), nn.Linear(5, outputs))


@pytest.mark.parametrize("features", [5, 200])
def test_the_ridge_error_is_that_of_scikit_learn(features):
    """In the primal form and, with more features than samples, in the dual."""
    mix = torch.randn(8, features, generator=G)
    z, z_new = (part.flatten(1) @ mix + 0.3 * torch.randn(len(part), features, generator=G) for part in (X, X_NEW))
    found = ridge_error(z, X, z_new, X_NEW)
    judge = np.arange(120) % 5 == 0
    a, b = z.double().numpy(), X.flatten(1).double().numpy()
    scale = np.trace(np.cov(a[~judge].T, bias=True)) * (~judge).sum() / features
    best = (math.inf, math.inf)
    for strength in STRENGTHS[::2]:
        fitted = Ridge(alpha=strength * scale, solver="svd").fit(a[~judge], b[~judge])
        choose, test = (
            ((fitted.predict(rows).clip(b.min(), b.max()) - wanted) ** 2).mean()
            for rows, wanted in ((a[judge], b[judge]), (z_new.double().numpy(), X_NEW.flatten(1).double().numpy()))
        )
        best = min(best, (choose, test))
    assert found.mse == pytest.approx(best[1], rel=1e-4)
    guess = ((b[~judge].mean(0) - X_NEW.flatten(1).numpy()) ** 2).mean()
    assert found.share == pytest.approx(found.mse / guess, rel=1e-4)


def test_a_feature_that_tells_all_and_one_that_tells_nothing():
    assert ridge_error(X, X, X_NEW, X_NEW).share < 1e-3
    noise = [torch.randn(len(part), 5, generator=G) for part in (X, X_NEW)]
    assert ridge_error(noise[0], X, noise[1], X_NEW).share > 0.95
    wide = [torch.rand(count, 1000, generator=G) for count in (400, 60)]
    few = ridge_error(wide[0][:, :3], wide[0], wide[1][:, :3], wide[1])
    assert few.mse == pytest.approx(1 / 12, rel=0.05)  # the variance of a uniform value, from some columns


def test_the_figures_are_those_of_the_model():
    model = split_model()
    state = torch.get_rng_state()
    figures_of = EpochFigures(model.train(), (X, Y), (X_NEW, Y_NEW))
    line = figures_of.measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert figures_of.measure() == line
    with torch.no_grad():
        sharp = float((model.cloud(model.edge(X_NEW)).argmax(1) == Y_NEW).double().mean())
    assert line["accuracy"] == pytest.approx(sharp, abs=0.15)
    assert line["information_per_dimension"] == pytest.approx(line["information"] / 5)
    spread = np.cov(model.edge(X_NEW).detach().flatten(1).double().numpy().T, bias=True)
    one = 0.5 * np.linalg.slogdet(np.eye(5) + spread / 0.05**2)[1]  # one Gaussian with the moments of the sample
    assert one - 1 < line["information"] < one + 2
    assert 0 < line["information_error"] < 0.5


def test_with_a_plug_in_the_information_is_still_that_of_unseen_features():
    model = split_model()
    cem = sfumato.CEM(num_classes=3, noise_std=0.05)
    with_cem = EpochFigures(model, (X, Y), (X_NEW, Y_NEW), cem=cem).measure()
    assert with_cem == EpochFigures(model, (X, Y), (X_NEW, Y_NEW)).measure()


def test_without_noise_there_is_no_information_to_tell():
    line = EpochFigures(split_model(noise_std=0.0), (X, Y), (X_NEW, Y_NEW)).measure()
    assert line["information"] is line["information_error"] is line["information_per_dimension"] is None
    assert "information" not in told({"epoch": 0, **line})


def test_targets_of_every_kind():
    def line(labels, outputs):
        return EpochFigures(split_model(outputs), (X, None), (X_NEW, labels)).measure()

    assert {"accuracy", "error"}.isdisjoint(line(None, 2))
    many = torch.rand(60, 4, generator=G) > 0.5
    assert line(many, 4)["accuracy"] == line(many.float(), 4)["accuracy"]
    assert 0.2 < line(many, 4)["accuracy"] < 0.8
    values = torch.rand(60, generator=G)
    assert 0 < line(values, 1)["error"] < 10


def test_a_monitor_tells_files_and_the_screen(tmp_path, capsys):
    figures = {"train": (X, Y), "held_out": (X_NEW, Y_NEW), "folder": tmp_path, "epochs": 2}
    with sfumato.Monitor(split_model(), **figures) as monitor:
        first = monitor.epoch(loss=1.5)
        monitor.epoch(loss=math.nan)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == first
    assert (lines[1]["epoch"], lines[1]["loss"]) == (1, None)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("epoch 1/2  loss 1.500  accuracy ")
    assert f"ridge attacker {first['ridge_mse']:.4f}, {first['ridge_share']:.0%} of a guess" in shown[0]
    shown_information = f"information {first['information']:.1f} ± {first['information_error']:.1f} nats held out"
    assert shown_information in shown[0]


def test_a_line_holds_what_there_is():
    assert told({"epoch": 0, "error": 0.25}) == "epoch 1  error 0.25"
    assert told({"epoch": 1, "loss": None, "accuracy": 0.5}, 2) == "epoch 2/2  accuracy 50.0%"


def test_tensorboard_reads_what_was_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoard(tmp_path)
    for epoch in range(3):
        board.write({"epoch": epoch, "accuracy": 0.1 * epoch, "information": None, "notes": ["x"], "good": True})
    board.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Tags()["scalars"] == ["accuracy"]
    assert [(one.step, one.value) for one in read.Scalars("accuracy")] == [
        (epoch, pytest.approx(0.1 * epoch)) for epoch in range(3)
    ]


def test_without_tensorboard_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'sfumato\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_mistakes_get_a_sentence():
    with pytest.raises(ConfigError, match="at least 10 samples"):
        EpochFigures(split_model(), (X[:9], Y[:9]), (X_NEW, Y_NEW))
    with pytest.raises(ConfigError, match="120 inputs and 3 labels were given to watch"):
        EpochFigures(split_model(), (X, Y[:3]), (X_NEW, Y_NEW))
    for wrong in (X, (X,), (X.numpy(), Y.numpy()), [(X[0], 1)] * 20):
        with pytest.raises(ConfigError, match=r"train is a .*; give a pair of tensors"):
            EpochFigures(split_model(), wrong, (X_NEW, Y_NEW))
    with pytest.raises(ConfigError, match="model to watch is a Linear; give the sfumato.SplitModel"):
        EpochFigures(nn.Linear(2, 2), (X, Y), (X_NEW, Y_NEW))


def test_a_loop_s_figures_may_be_tensors_of_one_value(tmp_path):
    monitor = sfumato.Monitor(split_model(), train=(X, Y), held_out=(X_NEW, Y_NEW), folder=tmp_path, show=False)
    line = monitor.epoch(loss=torch.tensor([0.5], requires_grad=True), rate=np.float32(0.25), note="warm")
    stored = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["loss"], stored["loss"], stored["rate"], stored["note"]) == (0.5, 0.5, 0.25, "warm")
    with pytest.raises(ConfigError, match="the figure 'loss' is a Tensor; give one number"):
        monitor.epoch(loss=torch.ones(2))


@pytest.mark.parametrize("cem", [False, True])
def test_a_run_is_watched_and_watching_changes_nothing(cem, tmp_path):
    lines, weights = {}, {}
    for watch in (True, False):
        config = TrainConfig(
            width=4, limit=160, test_limit=20, epochs=2, noise_std=0.1, cem=cem, clusters_per_class=1, watch=watch,
            device="cpu",
        )  # fmt: skip
        train_run(config, folder := tmp_path / str(watch))
        lines[watch] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights[watch] = (folder / "model.safetensors").read_bytes()[-4000:]
    assert weights[True] == weights[False]
    for seen, plain in zip(lines[True], lines[False], strict=True):
        figures = {
            name: seen.pop(name)
            for name in (
                "information",
                "information_error",
                "information_per_dimension",
                "ridge_mse",
                "ridge_share",
            )
        }
        assert seen | {"seconds": 0} == plain | {"seconds": 0}
        assert 0 < figures["ridge_share"] < 1.2
        assert figures["information"] > 0
    assert TrainConfig(watch=False).digest() == TrainConfig().digest()
