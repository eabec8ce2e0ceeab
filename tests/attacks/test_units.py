"""No attack depends on units: figures are the same under z -> A z + b, whatever is attacked and however."""

import numpy as np
import pytest
import torch
from attack_cases import ATTACKS, LEARNED, images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.attacks import (
    NearestAttack,
    Observer,
    RidgeAttack,
    build,
    identify,
    invert,
    measure_leakage,
    probe_attribute,
)
from sfumato.attacks.whitening import whiten
from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel

FEW = 12
D = 48  # with 200 images the most of which a whole covariance is told: what a regularisation takes for large matters
TRAINED = (*LEARNED, "posterior", "cloud-only")
TOLERANCE = 0.02  # of the error: what rounding in float32 and the end of an iteration change
WORSE = 1.3  # a network whose input is turned begins with other weights, and four epochs do not make up for it
KINDS = ("units", "rotation", "matrix")


def change(kind: str, size: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """A (size, size) and b (size,) of z A + b, in float64."""
    g = torch.Generator().manual_seed(5)
    eye, none = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    shift = 20 * torch.randn(size, generator=g, dtype=torch.float64)
    turns = [torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))[0] for _ in range(2)]
    scale = torch.logspace(-3, 5, size, dtype=torch.float64)
    if kind == "units":
        return scale.diag(), scale * shift
    if kind == "rotation":
        return turns[0], none
    if kind == "matrix":  # any invertible one: of condition 1,000
        return turns[0] @ torch.logspace(-1.5, 1.5, size, dtype=torch.float64).diag() @ turns[1], shift
    return eye, none


class Edge(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, D)
        matrix, shift = change(kind)
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)

    def forward(self, x):
        return (torch.tanh(self.layer(x.flatten(1))).double() @ self.matrix + self.shift).float()


class Units(nn.Module):
    """Noise first, then other units: what leaves the device is noisy and the channel does not say how."""

    stochastic = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.matrix, self.shift = change(kind)

    def forward(self, z, generator=None):
        noisy = z + 0.3 * torch.randn(z.shape, generator=generator)
        return (noisy.double() @ self.matrix + self.shift).float()


class Cloud(nn.Module):
    """The same answers whatever the units are: it undoes the change."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        matrix, self.shift = change(kind)
        self.inverse = torch.linalg.inv(matrix)

    def forward(self, z):
        return ((z.double() - self.shift) @ self.inverse).float()


def silent(kind: str) -> SplitModel:
    return SplitModel(Edge(kind), Channel(), Cloud(kind))


def noisy(kind: str) -> SplitModel:
    return SplitModel(Edge("none"), Channel(transforms=[Units(kind)]), Cloud(kind))


def error(name: str, model: SplitModel) -> float:
    attack = build(ATTACKS[name]).fit(Observer(model, images(200)))
    return float(invert(attack, model, images(30, seed=1)).mse.mean())


@pytest.fixture(scope="module")
def plain():
    found: dict = {}

    def of(name: str, make) -> float:
        if (name, make) not in found:
            found[name, make] = error(name, make("none"))
        return found[name, make]

    return of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_depends_on_units(plain, name, kind):
    if name in TRAINED and kind != "units":
        assert error(name, silent(kind)) < WORSE * plain(name, silent)
    else:
        assert error(name, silent(kind)) == pytest.approx(
            plain(name, silent), rel=5 * TOLERANCE if name in TRAINED else TOLERANCE
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in TRAINED and name != "optimization"])
def test_nor_does_it_where_the_noise_has_to_be_measured(plain, name, kind):
    assert error(name, noisy(kind)) == pytest.approx(plain(name, noisy), rel=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_and_identification_do_not_either(kind):
    def probe(model: SplitModel) -> float:
        return probe_attribute(Observer(model, images(300)), model, images(100, seed=1), "contrast").accuracy

    assert probe(silent(kind)) == pytest.approx(probe(silent("none")), abs=0.02)
    assert measure_leakage(silent(kind), images(60, seed=1), seed=0).identified == 1
    if kind == "matrix":
        return  # `identify` is told the noise of each coordinate, which here would be correlated
    z_hat = torch.randn(200, FEW, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z_hat + torch.randn(200, FEW, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix, shift = change(kind, FEW)
    sigma = matrix.diagonal() if kind == "units" else 1.0
    expected = identify(z, z_hat, 1.0)
    assert 0.3 < float(expected.mean()) < 1
    assert torch.equal(identify(z @ matrix + shift, z_hat @ matrix + shift, sigma), expected)


def test_who_differs_little_beside_a_giant_coordinate_is_told_apart():
    z_hat = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    giant = torch.arange(50, dtype=torch.float64)[:, None] // 2 * 1e8  # two by two the same
    both = torch.cat([z_hat, giant], 1)
    assert identify(both, both, 1e-3).tolist() == [1.0] * 50


class Beside(nn.Module):
    """All pixels, and something large that says nothing."""

    def forward(self, x):
        rows = x.flatten(1)
        return torch.cat([rows, 1e6 * torch.sin(1e4 * rows.sum(1, keepdim=True))], 1)


def test_plain_pixels_beside_a_coordinate_of_a_million_are_read():
    model = SplitModel(Beside(), Channel(), nn.Identity())
    attack = RidgeAttack().fit(Observer(model, images(400)))
    assert float(invert(attack, model, images(50, seed=1)).psnr.min()) > 40


class TestWhitening:
    def features(self, count=4000, noise=0.3):
        g = torch.Generator().manual_seed(0)
        mix = torch.randn(FEW, FEW, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, FEW, dtype=torch.float64)
        clean = torch.randn(count, FEW, generator=g, dtype=torch.float64) @ mix
        return clean, *(clean + noise * torch.randn(clean.shape, generator=g, dtype=torch.float64) for _ in range(2))

    def test_without_noise_the_covariance_is_the_identity(self):
        clean = self.features()[0]
        assert np.allclose(np.cov(whiten(clean, None, 0.0)(clean).numpy().T), np.eye(FEW), atol=1e-3)

    def test_with_noise_its_eigenvalues_are_the_shares_of_signal(self):
        """Those of C^-1 (C - N), by NumPy; the measured noise gives the same as the known one."""
        _, first, second = self.features()
        covariance = np.cov(first.numpy().T)
        expected = np.sort(np.linalg.eigvals(np.linalg.solve(covariance, covariance - 0.09 * np.eye(FEW))).real)
        for known, other in ((0.3, None), (None, second)):
            found = np.linalg.eigvalsh(np.cov(whiten(first, other, known)(first).numpy().T))
            assert np.allclose(found, expected.clip(1e-6), atol=1e-3 if other is None else 0.03)

    @pytest.mark.parametrize("known", [0.0, 0.3])
    def test_a_network_gets_each_coordinate_at_its_place_again(self, known):
        _, first, _ = self.features()
        first = first * torch.logspace(-4, 4, FEW, dtype=torch.float64) + 7
        found = whiten(first, None, known)
        expected = (first - first.mean(0)) / first.std(0, correction=0)
        assert torch.allclose(found(first) @ found.unmix, expected.float(), atol=2e-3)

    def test_a_difference_in_units_of_the_noise_is_that_of_mahalanobis(self):
        _, first, _ = self.features(noise=3.0)  # no direction is nearly free of it
        found = whiten(first, None, 3.0)
        between = found.in_noise(found(first[:1]) - found(first[1:2])).square().sum()
        assert float(between) == pytest.approx(float((first[0] - first[1]).square().sum()) / 9, rel=0.05)

    def test_long_features_and_few_images_take_no_square_matrix(self):
        assert whiten(torch.randn(100, 2000), None, 0.0).mix is None
        assert whiten(torch.randn(100, 30), None, 0.0).mix is None
        assert whiten(torch.randn(100, 25), None, 0.0).mix is not None
        dead = torch.cat([torch.randn(50, 3), torch.full((50, 2), 7.0)], 1)
        assert bool(whiten(dead, None, 0.0)(dead).isfinite().all())
        assert float(whiten(dead, None, 0.0)(dead)[:, 3:].abs().max()) == 0


class Largest(TorchDispatchMode):
    """The largest tensor that anything computes, in values."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor))])
        return out


def test_large_images_fit_into_memory():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 112, 112), dtype=torch.uint8)
    some = ImageSet(pixels, torch.zeros(16, dtype=torch.long), ("a",))
    model = SplitModel(nn.Conv2d(3, 16, 3, padding=1), Channel(), nn.Identity())
    with Largest() as largest:
        for attack in (RidgeAttack(), NearestAttack()):
            invert(attack.fit(Observer(model, some)), model, some.subset(range(4)))
    assert largest.values < 2**24  # features x pixels alone would be 7.5 billion
