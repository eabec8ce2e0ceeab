"""Moments that follow the features of the steps; the fit of the mixture; the competence of the classifier."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sfumato
from sfumato.errors import ConfigError, FeatureError, NotFittedError, SfumatoWarning

CLASSES, DIM, SIGMA = 3, 6, 0.1


def stream(steps: int, count: int = 64, seed: int = 0, scale: float = 1.0):
    """Batches of Gaussian clusters of known moments."""
    random = torch.Generator().manual_seed(seed)
    means = torch.rand(CLASSES, DIM, generator=random)
    mix = 0.1 * torch.randn(DIM, DIM, generator=random)
    for _ in range(steps):
        labels = torch.randint(CLASSES, (count,), generator=random)
        yield means[labels] + scale * torch.randn(count, DIM, generator=random) @ mix, labels
    yield means, mix.T @ mix


def follow(cem, steps=400, **options):
    *batches, truth = stream(steps, **options)
    for z, labels in batches:
        cem(z.requires_grad_(), labels)
    return truth


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_moments_come_to_those_of_the_steps(covariance):
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps", covariance=covariance)
    means, spread = follow(cem)
    assert torch.allclose(cem.means, means, atol=0.08)
    assert torch.allclose(cem.weights, torch.full((CLASSES,), 1 / CLASSES), atol=0.08)
    expected = {"diagonal": spread.diagonal(), "spherical": spread.diagonal().mean()}.get(covariance, spread)
    assert torch.allclose(cem.covariances, expected.expand(cem.covariances.shape), atol=0.35 * float(expected.max()))
    assert cem.mixture_fit == pytest.approx(1.0, abs=0.1)


def test_a_step_is_the_moving_average_in_float64():
    """One step of `follow` for the tied family, written as loops over float64 numbers."""
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    follow(cem, 20)
    mu, spread, weights = (value.double().numpy() for value in (cem.means, cem.covariances[0], cem.weights))
    seen = cem.mixture.counts.numpy().copy()
    ((z, labels), _) = stream(1, count=48, seed=5)
    cem(z.clone().requires_grad_(), labels)
    z, labels, n, total = z.double().numpy(), labels.numpy(), 48, cem.mixture.samples
    rate = max(min(0.2, n / (4 * DIM)), n / total)
    scatter = sum(np.outer(z[i] - mu[labels[i]], z[i] - mu[labels[i]]) for i in range(n)) / n
    np.testing.assert_allclose(cem.covariances[0], (1 - rate) * spread + rate * scatter, rtol=1e-4, atol=1e-6)
    for j in range(CLASSES):
        own = z[labels == j]
        share = min(1.0, max(rate * len(own) / (weights[j] * n), len(own) / (seen[j] + len(own))))
        np.testing.assert_allclose(cem.means[j], mu[j] + share * (own.mean(0) - mu[j]), rtol=1e-4, atol=1e-6)


def test_until_there_are_samples_enough_there_is_no_pull():
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")  # tied: 4 x 6 samples
    *batches, _ = stream(4, count=8)
    pulls = []
    for z, labels in batches:
        z.requires_grad_()
        pulls.append(float(torch.autograd.grad(cem(z, labels), z)[0].abs().sum()))
    assert pulls[:3] == [0.0, 0.0, 0.0]
    assert pulls[3] > 0
    few = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    few(batches[0][0], batches[0][1])
    few.begin_period()  # a small set: what an epoch has is taken
    assert few.mixture.samples == 8


def test_a_class_that_comes_later_begins_where_it_is():
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    *batches, (means, _) = stream(30)
    for z, labels in batches[:10]:
        cem(z[labels < 2].requires_grad_(), labels[labels < 2])
    z, labels = batches[10]
    z.requires_grad_()
    (slope,) = torch.autograd.grad(cem(z, labels), z)
    assert float(slope[labels == 2].abs().max()) == 0.0
    assert float(slope[labels < 2].abs().max()) > 0.0
    assert torch.allclose(cem.means[2], means[2], atol=0.2)


def test_features_that_outgrow_the_mixture_do_not_make_it_pull_harder():
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    follow(cem, 50)
    cem.begin_period()
    *batches, _ = stream(40)
    centre = cem.means
    for number, (z, labels) in enumerate(batches):
        cem((centre[labels] + 1.05**number * (z - centre[labels])).requires_grad_(), labels)
    assert 0.8 < cem.mixture_fit < 1.25


def test_the_state_goes_on_as_if_nothing_had_happened():
    one, other = (sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps") for _ in range(2))
    follow(one, 7)
    other.load_state_dict(one.state_dict())
    *batches, _ = stream(5, seed=3)
    for z, labels in batches:
        slopes = [torch.autograd.grad(cem(z.requires_grad_(), labels), z)[0] for cem in (one, other)]
        assert torch.equal(*slopes)
    assert one.mixture_fit == other.mixture_fit


def test_a_mixture_of_other_features_is_told():
    *batches, _ = stream(8)
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, clusters_per_class=1)
    features, labels = torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches])
    cem.refresh(features, labels)
    for z, y in batches:
        cem(z.requires_grad_(), y)
    assert cem.mixture_fit == pytest.approx(1.0, abs=1e-4)
    centre = torch.stack([features[labels == c].mean(0) for c in range(CLASSES)])
    cem.refresh(centre[labels] + 0.2 * (features - centre[labels]), labels)
    for z, y in batches:
        cem(z, y)
    with pytest.warns(SfumatoWarning, match=r"does not fit: it pulls [0-9.]+ times as hard.*as_in_training"):
        cem.refresh(features, labels)


def test_competence_is_none_at_chance_and_full_from_half_of_it():
    *batches, _ = stream(2)
    (z, labels), _ = batches
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, clusters_per_class=1)
    cem.refresh(z, labels)
    z = z.clone().requires_grad_()
    plain = float(cem(z, labels).detach())
    for loss, factor in (
        (math.log(3), 0.0),
        (2.0, 0.0),
        (0.75 * math.log(3), 0.5),
        (0.5 * math.log(3), 1.0),
        (0.0, 1.0),
    ):
        assert float(cem(z, labels, torch.tensor(loss)).detach()) == pytest.approx(factor * plain, abs=1e-6)
    free = sfumato.CEM(num_classes=None, clusters=2, noise_std=SIGMA)
    free.refresh(z.detach())
    with pytest.raises(ConfigError, match="has no classes; leave it out"):
        free(z, None, torch.tensor(1.0))


def test_a_penalty_without_weight_is_told():
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    *batches, _ = stream(8)

    def epoch():
        for z, labels in batches:
            cem(z.requires_grad_(), labels, torch.tensor(5.0))

    epoch()
    cem.begin_period()
    epoch()
    with pytest.warns(SfumatoWarning, match=r"no weight for two epochs.*competence=False"):
        cem.begin_period()


def test_features_that_collapse_are_told_where_nobody_refreshes():
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")
    *batches, _ = stream(10)
    for z, labels in batches:
        cem(z.requires_grad_(), labels)
    cem.begin_period()  # of healthy features nothing is said
    for _ in range(10):
        cem((0.5 + 1e-4 * batches[0][0].detach()).requires_grad_(), batches[0][1])
    with pytest.warns(SfumatoWarning, match="the features have collapsed"):
        cem.begin_period()


def test_features_without_a_graph_are_refused():
    *batches, _ = stream(3)
    (z, labels), *_ = batches
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, clusters_per_class=1)
    cem.refresh(z, labels)
    with pytest.raises(FeatureError, match="have no graph, so the penalty cannot reach the encoder"):
        cem(z, labels)
    with torch.no_grad():
        assert float(cem(z, labels)) > 0
    assert float(cem.eval()(z, labels)) > 0
    with pytest.raises(NotFittedError, match="has seen no training batch yet"):
        sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps").eval()(z, labels)
    with pytest.raises(FeatureError, match="have no graph"):
        sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, update="steps")(z.detach(), labels)


@pytest.mark.parametrize("options", [{}, {"covariance": "diagonal"}, {"clusters_per_class": 1}, {"update": "steps"}])
def test_second_derivatives_are_those_of_the_frozen_mixture(options):
    """Central differences of the gradient along a direction; the gradient is linear in z, so they are exact."""
    *batches, _ = stream(3)
    cem = sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, **options)
    cem.refresh(torch.cat([z for z, _ in batches]), torch.cat([y for _, y in batches]))
    state = {name: value.clone() for name, value in cem.state_dict().items()}
    z, y = batches[0]
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))

    def slope(at):
        cem.load_state_dict(state)  # of moments that follow, those of before
        at = at.clone().requires_grad_()
        return torch.autograd.grad(7 * cem(at, y), at, create_graph=True)[0], at

    g, at = slope(z)
    found = torch.autograd.grad((g * v).sum(), at)[0]
    # steps small enough that no sample changes its cluster
    expected = (slope(z + 1e-3 * v)[0] - slope(z - 1e-3 * v)[0]).detach() / 2e-3
    assert torch.allclose(found, expected, rtol=0.02, atol=2e-4 * float(expected.abs().max()) + 1e-4)
    assert float(found.abs().max()) > 0


@pytest.mark.parametrize("options", [{"scaling": "literal"}, {"covariance": "tied", "update": "running"}])
def test_what_is_defined_for_one_covariance_per_cluster_only(options):
    with pytest.raises(ConfigError, match="as printed, one covariance per cluster"):
        sfumato.CEM(num_classes=CLASSES, noise_std=SIGMA, **({"update": "steps"} | options))


def test_many_classes_of_two_images_each():
    features = torch.rand(600, 128, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(600) % 300
    cem = sfumato.CEM(num_classes=300, noise_std=SIGMA)
    with pytest.warns(SfumatoWarning, match="fewer than two samples"):
        cem.refresh(features, labels)
    found = cem.diagnostics()  # once asked for k D^2 numbers in float64, 50 GB at 512 dimensions
    assert 0 <= found.own_cluster_posterior <= 1
    assert found.smallest_cluster == 1


def test_no_lambda_holds_a_training_at_chance():
    """Two hundred times the default, from the first step on."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 4
    x = torch.rand(4, 10, generator=random)[y] + 0.1 * torch.randn(600, 10, generator=random)
    model = sfumato.SplitModel(
        nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Sigmoid()),
        sfumato.Channel(noise_std=0.1),
        nn.Linear(8, 4),
    )
    cem = sfumato.CEM(num_classes=4, noise_std=0.1, update="steps")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for epoch in range(12):
        for i in torch.randperm(600, generator=torch.Generator().manual_seed(epoch)).split(50):
            z_hat, _, logits = model.outputs(x[i])
            task_loss = cross_entropy(logits, y[i])
            optimizer.zero_grad()
            (task_loss + 60.0 * cem(z_hat, y[i], task_loss)).backward()
            optimizer.step()
    with sfumato.exact_batch_norm(model):
        model.outputs(x)
    assert (model.eval()(x).argmax(1) == y).double().mean() > 0.5
