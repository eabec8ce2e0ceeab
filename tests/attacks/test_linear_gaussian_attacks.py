"""Where the smallest possible error is known, attacks reach it, and none falls below it."""

import linear_gaussian
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import Identity

from sfumato.attacks import (
    DecoderConfig,
    NearestConfig,
    Observer,
    OptimizationAttack,
    OptimizationConfig,
    Queries,
    QueryObserver,
    RidgeAttack,
    RidgeConfig,
    StrongConfig,
    build,
    invert,
)
from sfumato.attacks.linear import dual_path, primal_path
from sfumato.attacks.optimization import descend
from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel


@pytest.fixture(scope="module")
def problem():
    return linear_gaussian.problem()


def test_the_oracle_is_right(problem):
    x = problem.test.float()
    z = problem.model.encode(x, torch.Generator().manual_seed(0)).detach()
    error = (problem.posterior_mean(z).view_as(x) - x).square().flatten(1).mean(1)
    assert abs(float(error.mean()) - problem.minimal_mse) < 4 * float(error.std()) / len(x) ** 0.5


@pytest.mark.parametrize(
    "config",
    [
        RidgeConfig(),
        StrongConfig(epochs=8, width=16, blocks=0, lr=5e-3),
        DecoderConfig(epochs=8, batch_size=64, width=16, blocks=0, lr=5e-3),
    ],
    ids=lambda config: type(config).__name__,
)
def test_ridge_and_both_decoders_come_within_five_percent_of_the_minimum(problem, config):
    attack = build(config).fit(Observer(problem.model, problem.train))
    found = invert(attack, problem.model, problem.test).means()
    assert found["mse"] < 1.05 * problem.minimal_mse
    assert found["mse"] > problem.minimal_mse - 3 * found["mse_error"]
    assert attack.outcome.held_out_mse == pytest.approx(found["mse"], rel=0.1)


def test_nearest_neighbours_stay_above_the_minimum(problem):
    attack = build(NearestConfig()).fit(Observer(problem.model, problem.train))
    found = invert(attack, problem.model, problem.test).means()
    assert problem.minimal_mse - 3 * found["mse_error"] < found["mse"] < 1.3 * problem.minimal_mse


@pytest.mark.parametrize(("rows", "columns"), [(60, 7), (20, 33)])
def test_both_forms_of_ridge_are_those_of_scikit_learn(rows, columns):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, columns, generator=generator) * 3 + 5
    x = torch.rand(rows, 4, generator=generator)
    strengths = (1e-4, 1e-1, 10.0)
    scale = float((z - z.mean(0)).double().square().sum()) / columns
    batches = [(z[:11], x[:11]), (z[11:], x[11:])]
    for path in (primal_path(batches, strengths), dual_path(z, x, strengths)):
        for strength, linear in zip(strengths, path, strict=True):
            stock = Ridge(alpha=strength * scale).fit(z.numpy().astype(np.float64), x.numpy().astype(np.float64))
            assert np.allclose(linear(z).numpy(), stock.predict(z.numpy()), atol=2e-4)
            assert np.allclose((linear.left.double() @ linear.right).numpy().T, stock.coef_, atol=1e-4)


class Opaque(torch.nn.Module):
    """The same encoder without a graph, as an ONNX session is."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        return self.edge(x).detach()


@pytest.mark.parametrize("gradients", [True, False])
def test_optimisation_finds_the_map_of_a_gaussian_prior_in_closed_form(problem, gradients):
    """With `anchor=mean`, no total variation: x = c + (W W^T / sigma^2 + I p / s^2)^-1 W (z - (c - m) W) / sigma^2."""
    config = OptimizationConfig(anchor="mean", tv=0.0, prior=1.0, iterations=150, restarts=2, choose_on=2)
    model = problem.model if gradients else SplitModel(Opaque(problem.model.edge), problem.model.channel, Identity())
    observer = Observer(model, problem.train)
    assert observer.white_box == gradients
    attack = OptimizationAttack(config).fit(observer)
    x = problem.test.float(torch.arange(20))
    z = problem.model.encode(x, torch.Generator().manual_seed(0)).detach()
    weight = problem.model.edge.weight.detach().double()
    centre = attack._mean.flatten().double()
    precision = weight @ weight.T / problem.sigma**2 + torch.eye(len(weight)).double() / attack._variance
    pull = (z.double() - (centre - linear_gaussian.MEAN) @ weight) @ weight.T / problem.sigma**2
    expected = centre + torch.linalg.solve(precision, pull.T).T
    found = attack.reconstruct(z).flatten(1)
    assert float((found - expected.clamp(0, 1)).abs().max()) < 2e-3
    assert attack._variance == pytest.approx(linear_gaussian.STD**2, rel=0.15)
    assert attack.outcome.converged


@pytest.mark.parametrize(
    ("edge", "side"),
    [(Identity(), 8), (Opaque(Identity()), 8), (Opaque(Identity()), 33)],
    ids=["slope", "none", "large"],
)
def test_a_search_reads_the_plain_image_where_images_are_fewer_than_pixels(edge, side):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 1, side, side), dtype=torch.uint8, generator=g)
    some = ImageSet(pixels, torch.zeros(60, dtype=torch.int64), ("any",))
    model = SplitModel(edge, Channel(), Identity())
    observer = Observer(model, some.subset(range(40)))
    config = OptimizationConfig(choose_on=1, restarts=1, iterations=100)
    found = invert(OptimizationAttack(config).fit(observer), model, some.subset(range(40, 60)))
    assert float(found.psnr.min()) > 40
    assert float(invert(RidgeAttack().fit(observer), model, some.subset(range(40, 60))).psnr.max()) < 30


def test_the_best_start_is_chosen_by_the_objective_and_not_by_the_truth():
    def objective(x: torch.Tensor) -> torch.Tensor:  # two valleys, at 3/4 (depth 0) and at 1/4 (depth 1)
        return ((4 * x - 2).square() - 1).square().sum(1) + (x[:, 0] < 0.5).float()

    left, above = descend(objective, torch.full((3, 1), 0.375), iterations=200, lr=0.025)
    right, below = descend(objective, torch.full((3, 1), 0.625), iterations=200, lr=0.025)
    assert torch.allclose(left, torch.full((3, 1), 0.25), atol=2.5e-3)
    assert torch.allclose(right, torch.full((3, 1), 0.75), atol=2.5e-3)
    assert bool((below < above).all())


class TestQueries:
    """Averaging is worth what less noise is worth; memoised noise gives nothing away to exact repeats."""

    def problem(self, sigma=0.2, count=800, tests=800):
        return linear_gaussian.problem(sigma=sigma, features=DIMENSIONS, count=count, tests=tests)

    def curve(self, problem, queries, **kind):
        found = []
        for count in queries:
            seen = QueryObserver(Observer(problem.model, problem.train), Queries(count, **kind))
            attack = RidgeAttack().fit(seen)
            found.append(
                (seen.noise_std, float(invert(attack, problem.model, problem.test, release=seen.asked).mse.mean()))
            )
        return found

    def test_sixty_four_fresh_answers_are_worth_an_eighth_of_the_noise(self):
        noisy, quiet = self.problem(), self.problem(sigma=0.2 / 8)
        ((noise_std, averaged),) = self.curve(noisy, [64])
        ((_, one),) = self.curve(quiet, [1])
        assert noise_std == pytest.approx(0.2 / 8)
        assert averaged == pytest.approx(one, rel=0.05)
        assert averaged == pytest.approx(quiet.minimal_mse, rel=0.1)

    def test_exact_repeats_gain_with_fresh_noise_and_nothing_with_memoised_noise(self):
        noisy = self.problem()
        fresh = [error for _, error in self.curve(noisy, [1, 4, 16])]
        assert fresh[2] < 0.8 * fresh[1] < 0.8 * 0.8 * fresh[0]
        (_, once), (noise_std, often) = self.curve(noisy, [1, 64], noise="memoised")
        assert often == pytest.approx(once, rel=0.02)
        assert once == pytest.approx(fresh[0], rel=0.1)
        assert noise_std == 0.2

    @pytest.mark.parametrize("duplicates", ["devices", "levels"])
    def test_several_devices_and_other_levels_get_around_memoised_noise(self, duplicates):
        once, often = self.curve(self.problem(count=200, tests=100), [1, 16], noise="memoised", duplicates=duplicates)
        assert often[1] < 0.7 * once[1]


DIMENSIONS = linear_gaussian.DIMENSION
