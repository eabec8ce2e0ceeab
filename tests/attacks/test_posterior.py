"""Samples of all images that could have been sent, where the posterior is known in closed form."""

import linear_gaussian
import pytest
import torch

from sfumato.attacks import Observer, PosteriorAttack, PosteriorConfig


@pytest.fixture(scope="module")
def fitted():
    problem = linear_gaussian.problem(count=1000, tests=60)
    config = PosteriorConfig(epochs=15, width=16, flow_steps=6, samples=40)
    z = problem.model.encode(problem.test.float(), torch.Generator().manual_seed(0)).detach()
    attack = PosteriorAttack(config).fit(Observer(problem.model, problem.train))
    return problem, attack, z, attack.samples(z)


def test_the_mean_of_the_samples_approaches_the_posterior_mean(fitted):
    problem, attack, z, samples = fitted
    x = problem.test.float()
    exact = float((problem.posterior_mean(z).view_as(x) - x).square().mean())
    assert float((samples.mean(0) - x).square().mean()) < 1.15 * exact
    assert torch.allclose(attack.reconstruct(z[:2]), samples[:, :2].mean(0), atol=1e-5)


def test_their_spread_is_the_posterior_s_standard_deviation(fitted):
    problem, attack, z, samples = fitted
    weight = problem.model.edge.weight.detach().double()
    seen = weight.T @ problem.covariance @ weight + problem.sigma**2 * torch.eye(weight.shape[1]).double()
    left = problem.covariance - problem.covariance @ weight @ torch.linalg.solve(seen, weight.T @ problem.covariance)
    found = samples.std(0).flatten(1).square().mean(0).sqrt().double()
    assert torch.equal(attack.spread(z[:1], 4), attack.samples(z[:1], 4).std(0))
    exact = left.diagonal().sqrt()
    assert float(found.mean()) == pytest.approx(float(exact.mean()), rel=0.15)
    assert float((found / exact - 1).abs().mean()) < 0.2  # pixel by pixel, from 40 samples
    x = problem.test.float()
    one = float((samples[0] - x).square().mean())  # a single sample is as far again from the mean as the truth is
    assert one == pytest.approx(2 * float((samples.mean(0) - x).square().mean()), rel=0.2)


def test_an_image_gets_the_samples_it_would_get_alone(fitted):
    _, attack, z, _ = fitted
    assert torch.allclose(attack.samples(z[:3], 2)[:, 1:2], attack.samples(z[1:2], 2), atol=1e-5)
