"""Trainings that go wrong in the three known ways are warned of with a remedy, and the remedy silences the warning."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sfumato
from sfumato.errors import SfumatoWarning

CLASSES, DIM = 4, 8
GENERATOR = torch.Generator().manual_seed(0)
Y = torch.arange(240) % CLASSES
X = torch.rand(CLASSES, 10, generator=GENERATOR)[Y] + 0.15 * torch.randn(240, 10, generator=GENERATOR)


def train(x, *, bounded=True, lam=0.0, ramp=True, noise_std=0.1, clip_norm=None, epochs=8, lr=0.5, **cem_options):
    """The sentences said in a small training. Without lambda a Monitor watches, otherwise the plug-in itself does."""
    torch.manual_seed(0)
    edge = nn.Sequential(nn.Linear(10, DIM), nn.Sigmoid()) if bounded else nn.Linear(10, DIM)
    model = sfumato.SplitModel(edge, sfumato.Channel(noise_std=noise_std, clip_norm=clip_norm), nn.Linear(DIM, CLASSES))
    cem = sfumato.CEM(noise_std=noise_std, **({"num_classes": CLASSES, "clusters_per_class": 2} | cem_options))
    plug_in = cem if lam else None
    monitor = sfumato.Monitor(model, train=(x[:120], Y[:120]), held_out=(x[120:], Y[120:]), cem=plug_in, show=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for epoch in range(epochs):
            if lam:
                with torch.no_grad():
                    cem.refresh(model.eval().features(x), Y)
            model.train()
            for i in torch.arange(len(x)).split(40):
                z_hat, _, logits = model.outputs(x[i])
                loss = cross_entropy(logits, Y[i])
                if lam:
                    loss = loss + lam * (epoch / epochs if ramp else 1.0) * cem(z_hat, Y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            monitor.epoch()
    return [str(one.message) for one in said if issubclass(one.category, SfumatoWarning)]


def test_features_that_collapse():
    fit, said = train(X, lam=60.0, ramp=False)
    assert fit.startswith("the mixture does not fit: it pulls")
    assert said.startswith("the features have collapsed: they can carry at most")
    assert said.endswith("lower lambda, or give the loss its third argument, cem(z_hat, y, task_loss)")
    assert train(X, lam=0.5, lr=0.2) == []


def test_an_encoder_that_escapes_by_scale():
    options = {"bounded": False, "noise_std": 2.0, "epochs": 12, "lr": 0.1}
    (said,) = (text for text in train(X, **options) if "scale" in text)
    assert said.startswith("the encoder escapes the noise by scale: the features' standard deviation grew from")
    assert said.endswith("bound them (a sigmoid at the end of the encoder, or clip_norm)")
    assert not any("scale" in text for text in train(X, clip_norm=1.0, **options))


def test_what_carries_too_little_from_the_start_is_told_without_a_plug_in_too():
    (said,) = train(X, noise_std=5.0, epochs=7, lr=0.1)
    assert said.startswith("the features have collapsed")
    assert said.endswith("lower the noise, or the weight of what pulls the features together")


def test_a_mixture_that_degenerates():
    outliers = X.clone()
    outliers[:9] *= torch.tensor([300.0, -300.0, 600.0]).repeat(3)[:, None]
    options = {"num_classes": None, "clusters": 4, "bounded": False, "lam": 0.01, "epochs": 2, "lr": 1e-6}
    (said,) = train(outliers, **options)
    assert said.startswith("the mixture has degenerated: nearly all samples lie in one of 4 clusters")
    assert "bound the features (a sigmoid, or clip_norm), or use one cluster" in said
    assert train(outliers, clip_norm=1.0, **options) == []


def test_too_many_clusters_for_the_samples():
    said, fit = train(X, lam=0.1, clusters_per_class=50, epochs=1)
    assert "of 200 clusters have fewer than two samples; lower clusters_per_class" in said
    assert fit.startswith("the mixture does not fit")  # a covariance of one sample says nothing of the next


def test_a_monitor_shows_the_fit_of_each_epoch_and_starts_it_anew():
    torch.manual_seed(0)
    model = sfumato.SplitModel(
        nn.Sequential(nn.Linear(10, DIM), nn.Sigmoid()), sfumato.Channel(noise_std=0.1), nn.Linear(DIM, CLASSES)
    )
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=0.1, update="steps")
    monitor = sfumato.Monitor(model, train=(X[:120], Y[:120]), held_out=(X[120:], Y[120:]), cem=cem, show=False)
    for _ in range(2):
        for i in torch.arange(len(X)).split(40):
            z_hat = model.outputs(X[i]).features
            cem(z_hat, Y[i])
        line = monitor.epoch()
        assert 0.5 < line["cem_fit"] < 2
        assert line["cem_competence"] == pytest.approx(1.0)  # no task loss is given
        assert cem.mixture_fit is None


def test_without_noise_there_is_nothing_to_measure_and_nothing_to_warn_of():
    model = sfumato.SplitModel(nn.Linear(10, DIM), sfumato.Channel(), nn.Linear(DIM, CLASSES))
    line = sfumato.Monitor(model, train=(X, Y), held_out=(X, Y), show=False).epoch()
    assert line["information"] is None
    assert line["information_per_dimension"] is None


@pytest.mark.parametrize("counts", [(97, 1, 1, 1), (250, 250, 250, 250)])
def test_one_cluster_is_told_from_several(counts):
    from sfumato.cem import Health

    found = Health(0.1).check(torch.ones(3), 0.01, torch.tensor(counts))
    assert bool(found) == (max(counts) == 97)
