"""Looking for the image that explains a released feature: gradient descent on a regularised likelihood."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.attacks.base import Observer
from sfumato.errors import ConfigError

__all__ = ["Likelihood", "descend", "need_white_box", "total_variation"]


def need_white_box(observer: Observer, name: str) -> None:
    """Refuse an observer whose encoder this attack cannot look into.

    Raises:
        ConfigError: it cannot.
    """
    if not observer.white_box:
        raise ConfigError(
            f"the {name} attack needs the gradient of the encoder, which this attacker cannot compute; "
            "use an attack that only needs pairs, such as strong, ridge or nearest"
        )


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

    def __call__(self, x: Tensor, seen: Tensor) -> Tensor:
        """(N, C, H, W) and (N, ...) -> (N,)."""
        difference = (self._observer.features(x) - seen).flatten(1)
        return self._observer.whitening.in_noise(difference).square().sum(1) / 2


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
