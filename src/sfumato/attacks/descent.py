"""Looking for the image that explains a released feature: descent on a regularised likelihood."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sfumato.attacks.base import Observer

__all__ = ["Likelihood", "Newton", "descend", "lowest_of", "total_variation"]

_ALL_PIXELS = 1024  # values of an image up to which a search without gradients tells slopes at every image,
_MOST = 2**25  # numbers up to which it keeps the slopes of the mean image for all, else it moves along
_COMPONENTS = 256  # so many principal components of the attacker's images
_STEP = 1 / 64  # of an image along one direction, from which a slope is told
_AT_ONCE = 2**24  # values of images or features held at once
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


def slopes_of(residual: Callable[[Tensor], Tensor], x: Tensor, basis: Tensor) -> Tensor:
    """Differences in place of derivatives: `(r(x + h b_k) - r(x)) / h`, (1, C, H, W) and (r, d) -> (r, D)."""
    here = residual(x)
    most = max(1, _AT_ONCE // max(basis.shape[1], here.shape[1]))
    moved = ((x.flatten(1) + _STEP * part).reshape(-1, *x.shape[1:]) for part in basis.split(most))
    return torch.cat([(residual(near) - here) / _STEP for near in moved])


class Newton:
    r"""Minimises `|r(x)|^2 / 2 + pull |x - c|^2 / 2` over images in [0, 1] without the gradient of r.

        x <- x - t B (J^T J + pull I)^-1 (J^T r + pull B^T (x - c)),    J_k = (r(x + h b_k) - r(x)) / h

    along orthonormal directions b_k, with the t among 1, 1/2, 1/4 and 1/10 that lowers the objective most; every row
    by itself, until none gains any more. Small images (up to 1,024 values) move in every pixel, and J is that of each
    image at each step. Larger ones move in every pixel by the J of the mean image, as far as that fits into memory: for
    an encoder that is nearly linear this is as good. Beyond, they move along 256 principal components.

    Args:
        observer: an attacker who has the encoder.
        likelihood: whose `residual` r is.
        indices: of the images for the mean and the components.
    """

    def __init__(self, observer: Observer, likelihood: "Likelihood", indices: Tensor) -> None:
        self._likelihood = likelihood
        self._shared: Tensor | None = None
        size, dimension = math.prod(observer.image_shape), math.prod(observer.feature_shape)
        x = observer.pixels(indices[: 8 * _COMPONENTS])
        mean = x.mean(0, keepdim=True)
        if size <= _ALL_PIXELS or size * max(size, dimension) <= _MOST:
            self._basis = torch.eye(size, device=observer.device)
        else:
            rows = (x - mean).flatten(1)
            self._basis = torch.linalg.svd(rows, full_matrices=False)[2][: min(_COMPONENTS, len(x) - 1)]
        if _ALL_PIXELS < size == len(self._basis):
            seen = observer.features(mean)
            self._shared = slopes_of(lambda near: likelihood.residual(near, seen), mean, self._basis)

    @torch.no_grad()
    def __call__(
        self, seen: Tensor, start: Tensor, centre: Tensor, pull: float, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and their objectives (n,) from a start and towards a centre, both (n, C, H, W)."""

        def value(x: Tensor, rows: Tensor) -> Tensor:
            off = (x - centre[rows]).flatten(1).square().sum(1)
            return self._likelihood(x, seen[rows]) + pull * off / 2

        best, everything = start.clone(), torch.arange(len(start), device=start.device)
        lowest = value(best, everything)
        factor = None if self._shared is None else _factor(self._shared, pull)
        for _ in range(iterations):
            before = lowest
            steps = torch.cat(
                [
                    self._step(best[rows], seen[rows], centre[rows], pull, factor)
                    for rows in everything.split(1 if factor is None else len(everything))
                ]
            )
            tried = [(best, lowest)]
            for share in _SHARES:
                x = (best - share * steps).clamp(0, 1)
                tried.append((x, value(x, everything)))
            best, lowest = lowest_of(tried)
            if bool((before - lowest <= _AT_REST * before).all()):
                break
        return best, lowest

    def _step(self, x: Tensor, seen: Tensor, centre: Tensor, pull: float, factor: Tensor | None) -> Tensor:
        slopes = self._shared
        if slopes is None:
            slopes = slopes_of(lambda near: self._likelihood.residual(near, seen), x, self._basis)
            factor = _factor(slopes, pull)
        assert factor is not None
        here = self._likelihood.residual(x, seen) @ slopes.T + pull * (x - centre).flatten(1) @ self._basis.T
        step = torch.cholesky_solve(here.double().T, factor).T.to(x)
        return (step @ self._basis).reshape(x.shape)


def _factor(slopes: Tensor, pull: float) -> Tensor:
    """The Cholesky factor of the curvature, (r, r) float64."""
    wide = slopes.double()
    curvature = wide @ wide.T
    # Where neither feature nor prior says anything, nothing moves.
    curvature.diagonal().add_(pull + 1e-9 * curvature.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.cholesky(curvature)
