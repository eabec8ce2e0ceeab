"""Noise of any covariance, against numpy, scipy and the linear-Gaussian channel, where everything is known exactly."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import sfumato
from sfumato import Channel, Noise, SplitModel, bounds
from sfumato.attacks import Knowledge, Observer, RidgeAttack, identify, invert, measure_leakage, observe
from sfumato.attacks.whitening import whiten
from sfumato.data import ImageSet
from sfumato.errors import ConfigError

D = 4
L = torch.tensor([[2.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0], [0.3, -0.2, 0.4, 0.0], [0.0, 1.0, 0.1, 0.2]])
LEVELS = torch.tensor([0.1, 0.5, 2.0, 1.0])
REGULAR = {
    "white": Noise(0.3),
    "diagonal": Noise(LEVELS),
    "full": Noise(0.0, L),
    "low rank and white": Noise(0.5, L[:, :2]),
    "low rank and diagonal": Noise(LEVELS, L[:, 1:2]),
}
SINGULAR = {"thin": Noise(0.0, L[:, :2]), "bare": Noise(torch.tensor([0.1, 0.0, 1.0, 1.0])), "none": Noise()}


def dense(noise: Noise) -> np.ndarray:
    """The covariance, from the numbers that a device gets."""
    columns = noise.array(D).astype(np.float64)
    return np.diag(columns[:, 0] ** 2) + columns[:, 1:] @ columns[:, 1:].T


@pytest.mark.parametrize("noise", REGULAR.values(), ids=REGULAR)
class TestEveryForm:
    def test_what_is_drawn_has_that_covariance(self, noise):
        drawn = noise.sample(torch.zeros(100_000, 2, 2), torch.Generator().manual_seed(0)).flatten(1).numpy()
        assert np.allclose(np.cov(drawn.T), dense(noise), atol=0.02 * dense(noise).max())
        assert np.abs(drawn.mean(0)).max() < 4 * noise.widest / 100_000**0.5

    def test_covariance_determinant_and_least_direction(self, noise):
        assert np.allclose(noise.covariance(D), dense(noise), rtol=1e-5)
        assert noise.log_det(D) == pytest.approx(np.linalg.slogdet(dense(noise))[1], abs=1e-5)
        assert noise.rms == pytest.approx(math.sqrt(np.trace(dense(noise)) / D), rel=1e-6)
        lowest = math.sqrt(np.linalg.eigvalsh(dense(noise))[0])
        assert 0 < noise.smallest <= lowest * (1 + 1e-5)
        if noise.rank in (0, D):
            assert noise.smallest == pytest.approx(lowest, rel=1e-5)

    def test_distances_in_units_of_the_noise_are_those_of_mahalanobis(self, noise):
        a, b = torch.randn(2, 50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = (noise.whiten(a) - noise.whiten(b)).square().sum(1)
        wanted = np.einsum("ni,ij,nj->n", a - b, np.linalg.inv(dense(noise)), a - b)
        assert np.allclose(found, wanted, rtol=1e-4)

    def test_a_device_gets_the_same_noise_from_bytes(self, noise):
        again = Noise.from_bytes(noise.array(D).tobytes(), noise.rank)
        assert np.allclose(again.covariance(D), dense(noise), rtol=1e-6)
        assert again.rank == noise.rank

    def test_half_the_noise_and_the_same_shape(self, noise):
        assert np.allclose(noise.scaled(0.5).covariance(D), dense(noise) / 4, rtol=1e-5)
        assert noise.unit().rms == pytest.approx(1)

    def test_the_channel_adds_it(self, noise):
        channel = Channel(noise=noise, clip_norm=1.0)
        z = torch.zeros(3, 2, 2)
        sent = channel.release(z, torch.Generator().manual_seed(5))
        assert torch.equal(sent, noise.sample(z, torch.Generator().manual_seed(5)))
        assert channel.noise_std == noise.rms


def test_white_noise_is_bit_for_bit_what_it_was():
    z = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    drawn = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    for channel in (Channel(noise_std=0.1), Channel(noise=0.1), Channel(noise=Noise(0.1))):
        assert torch.equal(channel.release(z, torch.Generator().manual_seed(7)), z + 0.1 * drawn)
        assert repr(channel) == repr(Channel(noise_std=0.1))


def test_a_covariance_comes_back():
    assert np.allclose(
        Noise.from_covariance(torch.from_numpy(dense(REGULAR["full"]))).covariance(D), dense(REGULAR["full"])
    )


@pytest.mark.parametrize("noise", SINGULAR.values(), ids=SINGULAR)
def test_directions_without_noise_leave_nothing_certified(noise):
    assert noise.singular
    assert noise.log_det(D) == -math.inf
    assert float(bounds.clipped_success_at_most(0.01, 1.0, noise)) == 1
    with pytest.raises(ConfigError, match="directions without noise.*add a little white noise"):
        noise.whiten(torch.zeros(2, D))
    with pytest.raises(ConfigError, match="without noise"):
        sfumato.held_out_information(torch.randn(10, D), None, noise)


def test_a_bare_direction_tells_all_candidates_apart():
    noise, z_hat = SINGULAR["thin"], torch.randn(200, D, generator=torch.Generator().manual_seed(0))
    released = z_hat + noise.scaled(50).sample(z_hat, torch.Generator().manual_seed(1))
    (sent, spread), known = noise.scaled(50).coordinates(released), noise.coordinates(z_hat)[0]
    assert float(identify(sent, known, spread).mean()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Channel(noise=math.nan), "noise_std is nan; give a finite"),
        (lambda: Channel(noise=torch.tensor([0.1, math.nan])), "hold NaN, infinite or negative values; give finite"),
        (lambda: Channel(noise=torch.tensor([0.1, -1.0])), "negative values; give finite"),
        (lambda: Channel(noise=torch.full((2, 2), math.inf)), r"factor is \(2, 2\); give a finite matrix"),
        (lambda: Channel(noise=torch.ones(2, 2, 2)), r"a tensor \(2, 2, 2\); give a number, or one for each"),
        (lambda: Channel(noise=0.1, noise_std=0.1), "exclude each other; give one"),
        (lambda: Noise(torch.ones(3), torch.ones(2, 1)), "3 standard deviations beside a factor of 2 rows"),
        (lambda: Noise(torch.tensor([0.0, 1.0]), torch.ones(2, 1)), "all 0 or all positive"),
        (lambda: Noise.from_covariance(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "eigenvalue -1.*not positive semi-def"),
        (lambda: Noise.from_covariance(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "not symmetric"),
        (lambda: Noise.from_covariance(torch.eye(2)[:1]), r"\(1, 2\); give a finite matrix \(D, D\)"),
        (lambda: Channel(noise=L).release(torch.zeros(1, 5)), "features of 4 values, and this feature has 5"),
        (lambda: Noise.from_bytes(b"123", 0), "3 bytes hold no noise"),
    ],
)
def test_bad_noise_is_one_sentence(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class Linear(nn.Module):
    """z_hat = (x - 1/2) W for images of 3 x 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.5) @ self.weight


SPREAD = 0.1  # of a pixel


def images(count: int, seed: int) -> ImageSet:
    white = torch.randn(count, 1, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pixels = ((0.5 + SPREAD * white) * 255).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, torch.zeros(count, dtype=torch.int64), ("only",))


@pytest.mark.parametrize("name", ["diagonal", "full", "low rank and diagonal"])
class TestTheLinearGaussianChannel:
    """x ~ N(1/2, s^2 I), z = W'(x - 1/2) + N(0, Sigma_p)."""

    def known(self, name: str) -> tuple[SplitModel, np.ndarray, np.ndarray]:
        noise = REGULAR[name].scaled(0.2)
        model = SplitModel(Linear(), Channel(noise=noise, clip_norm=50.0), nn.Identity()).eval()
        weight = model.edge.weight.detach().double().numpy()
        return model, weight, dense(noise)

    def test_ridge_reaches_the_exact_error_and_not_less(self, name):
        model, weight, noise = self.known(name)
        precision = np.eye(6) / SPREAD**2 + weight @ np.linalg.inv(noise) @ weight.T
        exact = np.trace(np.linalg.inv(precision)) / 6
        attack = RidgeAttack().fit(Observer(model, images(4000, 1)))
        found = invert(attack, model, images(4000, 2)).means()
        assert exact - 3 * found["mse_error"] < found["mse"] < 1.03 * exact

    def test_information_certificate_and_identification(self, name):
        model, weight, noise = self.known(name)
        signal = SPREAD**2 * weight.T @ weight
        exact = (np.linalg.slogdet(signal + noise)[1] - np.linalg.slogdet(noise)[1]) / 2
        judged = images(300, 2)
        found = measure_leakage(model, judged, seed=0, quick=True)
        assert exact - 3 * found.information_error < found.information < 1.1 * exact + 0.1
        lowest = math.sqrt(np.linalg.eigvalsh(noise)[0])
        certified = scipy.stats.norm.cdf(scipy.stats.norm.ppf(1 / 300) + 50.0 / model.channel.noise.smallest)
        assert found.clipped_at_most == pytest.approx(certified)
        assert model.channel.noise.smallest <= lowest * (1 + 1e-5)
        assert found.holds
        with torch.no_grad():
            clean = model.features(judged.float()).double().numpy()
        sent = clean + np.random.default_rng(0).multivariate_normal(np.zeros(D), noise, len(clean))
        likely = np.stack([scipy.stats.multivariate_normal(one, noise).logpdf(sent) for one in clean], 1)
        share = (likely.argmax(1) == np.arange(len(clean))).mean()
        assert found.identified == pytest.approx(share, abs=4 * found.identified_error)

    def test_an_attacker_who_knows_the_noise_whitens_by_it(self, name):
        model, weight, noise = self.known(name)
        observer = Observer(model, images(4000, 1))
        once = torch.cat([observer.record(part)[1] for part in observer.parts(torch.arange(4000))])
        twice = torch.cat([observer.record(part)[1] for part in observer.parts(torch.arange(4000))])
        told, measured = whiten(once, None, model.channel.noise), whiten(once, twice, None)
        shares = [np.sort(np.linalg.eigvalsh(np.cov(one(once).numpy().T))) for one in (told, measured)]
        exact = np.linalg.eigvals(np.linalg.solve(SPREAD**2 * weight.T @ weight + noise, SPREAD**2 * weight.T @ weight))
        assert np.allclose(shares[0], np.sort(exact.real), atol=0.06)
        assert np.allclose(shares[0], shares[1], atol=0.06)

    def test_who_believes_in_less_of_it_believes_in_the_shape(self, name):
        model, _, noise = self.known(name)
        half = observe(model, images(100, 1), Knowledge(noise_std=model.channel.noise_std / 2))
        assert np.allclose(half.noise.covariance(D), noise / 4, rtol=1e-4)
        drawn = half.release(torch.full((20_000, 1, 3, 2), 0.5), torch.Generator().manual_seed(0))
        assert np.allclose(np.cov(drawn.numpy().T), noise / 4, atol=0.04 * noise.max())


def test_jacobians_are_seen_through_the_shape():
    """Fisher information of a linear encoder, W Sigma_p^-1 W', through the audit's van Trees bound."""
    from sfumato.audit import Subject
    from sfumato.audit.bounds import measure_bounds
    from sfumato.audit.subject import GaussianPrior
    from sfumato.data import DataSets

    noise = REGULAR["full"].scaled(0.2)
    model = SplitModel(Linear(), Channel(noise=noise), nn.Identity()).eval()
    prior = GaussianPrior(torch.full((6,), 0.5), SPREAD**2 * torch.eye(6))
    sets = DataSets("made", images(100, 1), images(100, 2), "", labelled=False)
    leakage = measure_leakage(model, sets.test, seed=0, quick=True)
    subject = Subject("made", model, classifies=False, prior=prior)
    found = measure_bounds(subject, sets, leakage, gradients=True, seconds=5, seed=0)
    weight = model.edge.weight.detach().double().numpy()
    exact = 6 / np.trace(np.eye(6) / SPREAD**2 + weight @ np.linalg.inv(dense(noise)) @ weight.T)
    (value,) = [one["value"] for one in found if one["name"] == "van_trees"]
    assert value > 0.99 * exact  # the matrix form is at least the scalar one
    posterior = np.trace(np.linalg.inv(np.eye(6) / SPREAD**2 + weight @ np.linalg.inv(dense(noise)) @ weight.T)) / 6
    assert value == pytest.approx(posterior, rel=1e-3)
