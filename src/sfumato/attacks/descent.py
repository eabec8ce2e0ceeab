"""Looking for the image that explains a released feature: descent on a regularised likelihood."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sfumato.attacks.base import Observer

__all__ = ["Likelihood", "basis_of", "descend", "gauss_newton", "lowest_of", "total_variation"]

_ALL_PIXELS = 1024  # values of an image up to which a search without gradients moves each by itself, else
_COMPONENTS = 256  # so many principal components of the attacker's images
_STEP = 1 / 64  # of an image along one direction, from which a slope is told
_AT_ONCE = 2**24  # values of a Jacobian, or of images, held at once
_SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step that are tried
_AT_REST = 1e-4  # relative: what a step gains at least where it is not the last


def total_variation(x: Tensor) -> Tensor:
    """Sum over an image of `|x[i+1, j] - x[i, j]| + |x[i, j+1] - x[i, j]|`, smooth below 0.01, (N, C, H, W) -> (N,)."""
    steps = [x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)]
    return (torch.cat(steps, 1).square() + 1e-4).sqrt().sum(1)


class Likelihood:
    """`|z_hat(x) - z|^2 / 2` in units of the noise: the negative log-likelihood of x up to a constant, in nats.

    The noise is what the attacker believes it to be (`Observer.noise_std`), or measured where it is not Gaussian alone.
    In directions without noise, 2 % of the feature's spread stands in for it, which only sets the balance with the
    prior. That quantising and dropping are not Gaussian is not modelled.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def residual(self, x: Tensor, seen: Tensor) -> Tensor:
        """(N, C, H, W) and (N, ...) -> (N, D), in units of the noise."""
        difference = (self._observer.features(x) - seen).flatten(1)
        return self._observer.whitening.in_noise(difference)

    def __call__(self, x: Tensor, seen: Tensor) -> Tensor:
        """(N, C, H, W) and (N, ...) -> (N,)."""
        return self.residual(x, seen).square().sum(1) / 2


def descend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    iterations: int,
    lr: float,
    bounds: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Adam on every row of `start` by itself, along a cosine to 0; the best point of each row on the way is kept.

    Args:
        objective: (N, ...) -> (N,), each value depending on its own row alone.
        start: (N, ...).
        iterations: steps.
        lr: of Adam.
        bounds: to which every value is clipped after each step.

    Returns:
        The best points (N, ...) and their objectives (N,).
    """
    point = start.detach().clone()
    best, lowest = point.clone(), torch.full((len(point),), torch.inf, device=point.device)
    first, second = torch.zeros_like(point), torch.zeros_like(point)
    wide = (len(point), *(1,) * (point.ndim - 1))
    for number in range(iterations + 1):
        with torch.enable_grad():
            point.requires_grad_()
            value = objective(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        with torch.no_grad():
            point = point.detach()
            better = value < lowest
            lowest = torch.where(better, value.detach(), lowest)
            best = torch.where(better.reshape(wide), point, best)
            if number == iterations:
                break
            # Adam elementwise: rows never mix, so a batch gives what its images give one by one.
            first = torch.lerp(first, slope, 0.1)
            second = torch.lerp(second, slope.square(), 0.01)
            ahead = first / (1 - 0.9 ** (number + 1))
            spread = (second / (1 - 0.99 ** (number + 1))).sqrt() + 1e-12
            rate = 0.5 * lr * (1.0 + float(torch.cos(torch.tensor(torch.pi * number / iterations))))
            point = point - rate * ahead / spread
            if bounds is not None:
                point = point.clamp(*bounds)
    return best, lowest


def lowest_of(found: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of several (points (N, ...), objectives (N,)) for each row the point whose objective is the smallest."""
    points, values = (torch.stack(part) for part in zip(*found, strict=True))
    rows = torch.arange(points.shape[1], device=points.device)
    best = values.argmin(0)
    return points[best, rows], values[best, rows]


def basis_of(observer: Observer, indices: Tensor) -> Tensor:
    """Orthonormal directions (r, d) in which a search without gradients moves: every pixel of a small image, else the
    principal components of the attacker's images.
    """
    size = math.prod(observer.image_shape)
    if size <= _ALL_PIXELS:
        return torch.eye(size, device=observer.device)
    x = observer.pixels(indices[: 8 * _COMPONENTS]).flatten(1)
    return torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][: min(_COMPONENTS, len(x) - 1)]


@torch.no_grad()
def gauss_newton(
    residual: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    centre: Tensor,
    pull: float,
    basis: Tensor,
    *,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    r"""Minimise `|r(x)|^2 / 2 + pull |x - c|^2 / 2` over images in [0, 1] without the gradient of r.

        x <- x - t (J^T J + pull I)^-1 (J^T r + pull (x - c)),    J_k = (r(x + h b_k) - r(x)) / h

    along orthonormal directions b_k, with the t among 1, 1/2, 1/4 and 1/10 that lowers the objective most; every row
    by itself, until none gains any more.

    Args:
        residual: (N, C, H, W) and which row each belongs to, (N,) -> (N, D).
        start: (n, C, H, W).
        centre: c, likewise.
        pull: towards the centre, at least 0.
        basis: (r, d).
        iterations: steps at most.

    Returns:
        Images (n, C, H, W) and their objectives (n,).

    >>> a = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> x = torch.zeros(1, 1, 1, 2)
    >>> found, value = gauss_newton(lambda x, _: x.flatten(1) @ a - 0.5, x, x, 0.0, torch.eye(2), iterations=3)
    >>> found.flatten(), value
    (tensor([0.0000, 0.5000]), tensor([0.]))
    """

    def value(x: Tensor, rows: Tensor) -> Tensor:
        return residual(x, rows).square().sum(1) / 2 + pull * (x - centre[rows]).flatten(1).square().sum(1) / 2

    best, rows = start.clone(), torch.arange(len(start), device=start.device)
    lowest = value(best, rows)
    for _ in range(iterations):
        before = lowest.clone()
        for row in rows:  # one Jacobian at a time
            x, one = best[row : row + 1], rows[row : row + 1]
            here = residual(x, one)
            most = max(1, _AT_ONCE // max(basis.shape[1], here.shape[1]))
            moved = ((x.flatten(1) + _STEP * part).reshape(-1, *x.shape[1:]) for part in basis.split(most))
            slopes = torch.cat([(residual(near, one.expand(len(near))) - here) / _STEP for near in moved]).double()
            gradient = slopes @ here[0].double() + pull * basis.double() @ (x - centre[one]).flatten().double()
            curvature = slopes @ slopes.T
            # Where neither feature nor prior says anything, nothing moves.
            curvature.diagonal().add_(pull + 1e-9 * curvature.diagonal().mean() + torch.finfo(torch.float64).tiny)
            step = (torch.linalg.solve(curvature, gradient).to(x) @ basis).reshape(x.shape)
            tried = torch.cat([(x - share * step).clamp(0, 1) for share in _SHARES])
            values = value(tried, one.expand(len(tried)))
            found = values.argmin()
            if values[found] < lowest[row]:
                best[row], lowest[row] = tried[found], values[found]
        if bool((before - lowest <= _AT_REST * before).all()):
            break
    return best, lowest
