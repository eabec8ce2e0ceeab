"""What noise on a frozen network may look like: shapes from the feature's moments and the cloud's sensitivity."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.noise import Noise
from sfumato.torch_utils import evaluating

__all__ = ["FULL", "WHITE", "Shape", "propose", "scores"]

FULL = 1024
"""Up to so many values a covariance of the whole feature is made, and differences are taken value by value."""

_CLASSES = 16  # answers up to which the scores of all are averaged; of more, so many are drawn
_AT_ONCE = 64  # features in one pass
_STEP = 0.05  # of a coordinate's spread, for differences where there are no gradients
_RIDGE = 1e-2  # of the mean sensitivity: what the cloud seems not to look at is not known to be free
_LEAST = 1e-4  # of the mean variance, or sensitivity: keeps dead coordinates and null spaces finite
_NULL = 1e-3  # of the sensitivity, which the null space may hold
_RANK = 64


class Shape(NamedTuple):
    """A family of noises with one strength.

    Attributes:
        name: one word.
        meaning: a few words for readers.
        at: strength > 0 -> noise; the stronger, the more.
    """

    name: str
    meaning: str
    at: Callable[[float], Noise]


WHITE = Shape("white", "the same in every direction", Noise)


def scores(cloud: nn.Module, z: Tensor, seed: int = 0) -> Tensor | None:
    r"""Rows R (m, D) whose `R^T R` is the Fisher information of the cloud's answer about the feature it was given.

        F = 1/n sum_i sum_y p(y | z_i) g g^T,    g = d log p(y | z_i) / d z_i,    p = softmax(cloud(z))

    No labels are needed: the sum is over the answers that the cloud itself holds possible (of more than 16 classes, 16
    are drawn from p for each feature). To second order, noise of covariance Sigma moves the answer by
    `1/2 trace(F Sigma)` nats (Kullback-Leibler divergence).

    A cloud without gradients is differentiated by central differences, value by value.

    Args:
        cloud: decoder, features (N, ...) -> logits (N, C).
        z: features (n, ...) as the cloud gets them, with noise.
        seed: of the classes that are drawn.

    Returns:
        (m, D) float64; None where the cloud passes no gradients and the feature has more than 1,024 values.

    >>> linear = nn.Linear(3, 2, bias=False)
    >>> linear.weight.data = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> rows = scores(linear, torch.zeros(1, 3))
    >>> (rows.T @ rows).diag().round(decimals=3).tolist()  # p (1 - p) 2^2
    [1.0, 0.0, 0.0]
    """
    source = torch.Generator().manual_seed(seed)
    spread = z.flatten(1).std(0, unbiased=False).clamp(min=1e-3 * float(z.std(unbiased=False)) + 1e-6)
    found: list[Tensor] = []
    for part in z.detach().split(_AT_ONCE):
        with evaluating(cloud, gradients=True):
            leaf = part.clone().requires_grad_()
            out = cloud(leaf)
            weights = [one / len(z) ** 0.5 for one in _weights(out.detach(), source)]
            if out.requires_grad:
                slopes = [torch.autograd.grad((out * one).sum(), leaf, retain_graph=True)[0] for one in weights]
                found += [slope.flatten(1).double() for slope in slopes]
                continue
        if z[0].numel() > FULL:
            return None
        slope = _differences(cloud, part, _STEP * spread)
        found += [torch.einsum("nc,ncd->nd", one, slope).double() for one in weights]
    return torch.cat(found)


def _weights(logits: Tensor, source: torch.Generator) -> Iterator[Tensor]:
    """For several answers y, `sqrt(p(y)) d log p(y) / d logits`, (n, C), averaged over draws where y is drawn."""
    p = logits.softmax(1)
    classes = p.shape[1]
    if classes <= _CLASSES:
        for y in range(classes):
            yield p[:, y : y + 1].sqrt() * (nn.functional.one_hot(torch.tensor(y), classes).to(p) - p)
        return
    for y in torch.multinomial(p.cpu(), _CLASSES, replacement=True, generator=source).T.to(p.device):
        yield (nn.functional.one_hot(y, classes).to(p) - p) / _CLASSES**0.5


def _differences(cloud: nn.Module, z: Tensor, step: Tensor) -> Tensor:
    """The cloud's Jacobian, (n, C, D), by central differences."""
    columns = []
    with evaluating(cloud):
        for index, size in enumerate(step.tolist()):
            moved = torch.zeros_like(z).flatten(1)
            moved[:, index] = size
            moved = moved.reshape(z.shape)
            columns.append((cloud(z + moved) - cloud(z - moved)) / (2 * size))
    return torch.stack(columns, -1)


def propose(features: Tensor, rows: Tensor | None) -> list[Shape]:
    r"""The shapes that these features and this cloud allow, white noise first.

    With F the Fisher information of `scores` and C the features' covariance:

        white       sigma^2 I
        diagonal    1 / (F_ii + ridge): more noise where the cloud looks less, coordinate by coordinate
        full        (F + ridge)^-1: of all noises with the same trace(F Sigma) the one of largest entropy
        least       of all noises with the same trace(F Sigma) the one that lets the least information through,
                    `1/2 log |C + Sigma| / |Sigma|`: with C = A A^T and A^T F A = diag(l),
                    Sigma = A diag(s) A^T, s (s + 1) = strength^2 / l
        null        noise only where the cloud does not look; the rest is sent as it is, and nothing is certified
        low         white, and in the features' 64 principal directions what `least` would have there

    Beyond 1,024 values no D x D matrix is made, and `full`, `least` and `null` are left out; without sensitivities only
    `white` is left. `least` does not depend on the units of coordinates.

    Args:
        features: z_hat (n, ...), clean.
        rows: of `scores`, or None.
    """
    z = features.detach().flatten(1).double()
    n, dim = z.shape
    z = (z - z.mean(0)) / n**0.5
    found = [WHITE]
    if rows is None:
        return found
    rows = rows.double()
    mean = float(rows.square().sum()) / dim
    if mean == 0:
        return found
    diagonal = (rows.square().sum(0) + _RIDGE * mean).rsqrt()
    found.append(_scaled("diagonal", "inverse sensitivity of each value", Noise(diagonal)))
    if dim <= FULL:
        fisher, eye = rows.T @ rows, torch.eye(dim, dtype=torch.float64)
        values, axes = torch.linalg.eigh(fisher + _RIDGE * mean * eye)
        full = Noise(0.0, (axes * values.rsqrt()) @ axes.T)
        found.append(_scaled("full", "inverse Fisher information of the cloud", full))
        covariance = z.T @ z
        covariance += _LEAST * float(covariance.trace()) / dim * eye
        found.append(Shape("least", "least information at this cost", _least(covariance, fisher + _LEAST * mean * eye)))
        values, axes = torch.linalg.eigh(fisher)
        free = values.cumsum(0) <= _NULL * float(values.sum())
        if bool(free.any()):
            found.append(_scaled("null", "only where the cloud does not look", Noise(0.0, axes[:, free])))
    basis = torch.linalg.svd(z, full_matrices=False)[2][: min(_RANK, n - 1, dim - 1)].T
    if basis.shape[1]:
        inside, seen = z @ basis, rows @ basis
        eye = torch.eye(basis.shape[1], dtype=torch.float64)
        covariance, fisher = inside.T @ inside, seen.T @ seen
        covariance += _LEAST * float(covariance.trace()) / len(eye) * eye
        fisher += _LEAST * float(fisher.trace()) / len(eye) * eye
        small = _least(covariance, fisher)

        def low(strength: float) -> Noise:
            factor = small(strength).factor
            assert factor is not None
            level = float(torch.linalg.svdvals(factor)[-1])
            return Noise(max(level, 1e-6), basis.float() @ factor)

        found.append(Shape("low", f"white, and more in {len(eye)} principal directions", low))
    return found


def _scaled(name: str, meaning: str, noise: Noise) -> Shape:
    unit = noise.unit()
    return Shape(name, meaning, unit.scaled)


def _least(covariance: Tensor, fisher: Tensor) -> Callable[[float], Noise]:
    """`strength -> A diag(s)^1/2`; stationary where `Sigma^-1 - (C + Sigma)^-1` is a multiple of F."""
    values, axes = torch.linalg.eigh(covariance)
    root = axes * values.clamp(min=0).sqrt()
    sensitivity, turn = torch.linalg.eigh(root.T @ fisher @ root)
    placed = root @ turn
    sensitivity = sensitivity.clamp(min=1e-12 * float(sensitivity[-1]) + 1e-300)

    def at(strength: float) -> Noise:
        product = strength**2 / sensitivity
        # (-1 + sqrt(1 + 4 p)) / 2 without cancellation for a small p
        variance = 2 * product / (1 + (1 + 4 * product).sqrt())
        return Noise(0.0, placed * variance.sqrt())

    return at


def unit_of(features: Tensor) -> float:
    """The features' standard deviation over all values: where strengths are sought around."""
    return max(float(features.double().std(unbiased=False)), math.sqrt(torch.finfo(torch.float32).tiny))
