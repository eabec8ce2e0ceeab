"""Optimisation: the image whose feature comes nearest to the one seen, among images that look like images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, AttackConfig, Fit, Job, Observer, hold_out
from sfumato.attacks.linear import best_linear
from sfumato.errors import ConfigError
from sfumato.metrics import mse
from sfumato.seeds import derive_seed, generator

__all__ = ["OptimizationAttack", "OptimizationConfig"]

_TV = (0.0, 0.03, 0.3, 3.0)  # nats per unit of total variation
_PRIORS = (0.01, 0.1, 1.0)  # of the Gaussian around the linear solution, relative to its own error

_ALL_PIXELS = 1024  # values of an image up to which a search without gradients tells slopes at every image,
_MOST = 2**25  # numbers up to which it keeps the slopes of the mean image for all, else it moves along
_COMPONENTS = 256  # so many principal components of the attacker's images
_STEP = 1 / 64  # of an image along one direction, from which a slope is told
_AT_ONCE = 2**24  # values of images or features held at once
_SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step that are tried
_AT_REST = 1e-4  # relative: what a step gains at least where it is not the last

Residual = Callable[[Tensor, Tensor], Tensor]
"""(N, C, H, W) images and what was seen (N, ...) -> (N, D), their difference in units of the noise."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(AttackConfig):
    """Settings of the search for each image.

    Attributes:
        images: How many images of a set it is tried on. Each costs `restarts` times `iterations` passes.
        iterations: Steps of Adam. Without gradients, a quarter as many Gauss-Newton steps at most.
        lr: Step size of Adam in grey values. Annealed to 0 along a cosine.
        restarts: Starting points. The linear solution, the mean image, then the linear solution with noise on
            it.
        anchor: Centre of the Gaussian prior. The `linear` solution or the `mean` image.
        tv: Weight of the total variation in nats. None takes the best of a few on held-out images. Without gradients
            there is none.
        prior: Weight of the Gaussian prior. 1 is the variance that the centre's errors have; none takes the
            best of a few.
        choose_on: Held-out images for the choice of weights.

    >>> OptimizationConfig().iterations
    150
    """

    images: int = 64
    iterations: int = 150
    lr: float = 0.02
    restarts: int = 2
    anchor: Literal["linear", "mean"] = "linear"
    tv: float | None = None
    prior: float | None = None
    choose_on: int = 8


class OptimizationAttack(Attack):
    """Minimises a regularised negative log-likelihood for every image by itself.

        |z_hat(x) - z|^2 / (2 sigma^2) + tv TV(x) + prior |x - c|^2 / (2 s^2),    0 <= x <= 1

    with the anisotropic total variation TV, the centre c (the linear solution for z, or the mean image) and s^2 the
    mean squared error of that centre on held-out images. Adam from several starts; the one with the smallest value of
    this objective is the answer, never the one nearest to the true image. Weights that are not given are chosen by the
    error on a few held-out images of the attacker, first the prior's and then the total variation's.

    The noise is what the attacker believes it to be (`Observer.noise`), or measured where it is not Gaussian alone. In
    directions without noise, 2 % of the feature's spread stands in for it, which only sets the balance with the prior.
    That quantising and dropping are not Gaussian is not modelled.

    Where the encoder is at hand but has no gradient (an ONNX file), the same is minimised without TV by Gauss-Newton
    steps whose slopes are differences.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> config = OptimizationConfig(iterations=20, restarts=1, tv=0.0, prior=1.0)
    >>> print(f"{OptimizationAttack(config).fit(Observer(model, digits)).outcome.held_out_mse:.3f}")
    0.004
    """

    name: ClassVar[str] = "optimization"
    settings: ClassVar[type[Any]] = OptimizationConfig

    def learn(self, observer: Observer, job: Job) -> None:
        """Fit the linear solution and choose the weights; an interrupted choice begins again."""
        cfg: OptimizationConfig = self.config
        if not observer.has_encoder:
            raise ConfigError(
                "the optimization attack needs the encoder, which this attacker does not have; use an attack that only "
                "needs pairs, such as strong, ridge or nearest"
            )

        def residual(x: Tensor, seen: Tensor) -> Tensor:
            return observer.whitening.in_noise((observer.features(x) - seen).flatten(1))

        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self._linear = best_linear(observer, learn, judge, seed=cfg.seed, deadline=self.until(0.25)).linear
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        self._residual: Residual = residual
        self._newton = None if observer.white_box else Newton(observer, residual, learn)
        self._mean = observer.pixels(learn[:4096]).mean(0)
        self._variance = float((x - self._centre(z)).square().mean().clamp_min(1e-8))
        few_x, few_z = x[: cfg.choose_on], z[: cfg.choose_on]
        errors: dict[tuple[float, float], float] = {}
        tvs = (0.0,) if self._newton is not None else _TV if cfg.tv is None else (cfg.tv,)
        priors = _PRIORS if cfg.prior is None else (cfg.prior,)
        total = len(priors) + len(tvs) - 1

        def error_of(tv: float, prior: float) -> float:
            if (tv, prior) not in errors and not (errors and self.late()):
                self.tv, self.prior = tv, prior
                errors[tv, prior] = float(mse(few_x, self.answer(few_z)).mean())
                job.tell(len(errors), total, mse=errors[tv, prior], held_out_mse=min(errors.values()))
            return errors.get((tv, prior), math.inf)

        self.prior = min(priors, key=lambda prior: error_of(tvs[0], prior))
        self.tv, self.prior = min(((tv, self.prior) for tv in tvs), key=lambda weights: error_of(*weights))
        self.outcome = self._outcome(few_z, errors[self.tv, self.prior])

    def _outcome(self, z: Tensor, error: float) -> Fit:
        # What is searched for half as long says whether the other half was needed.
        iterations = self.config.iterations
        short, whole = (float(self._search(z, steps)[1].sum()) for steps in (max(1, iterations // 2), iterations))
        if self.late():
            return Fit(False, "its deadline ended the choice of its weights; give it more time", error)
        gain = (short - whole) / max(abs(short), 1e-12)
        if gain > 0.02:
            return Fit(False, f"twice the iterations still lowered the objective by {gain:.0%}; iterate longer", error)
        chosen = f"total variation {self.tv:g}, prior {self.prior:g}"
        words = f"the second half of the iterations lowered the objective by {max(gain, 0):.1%} ({chosen})"
        return Fit(True, words, error)

    @torch.no_grad()
    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1], each by an optimisation of its own."""
        return self._search(seen, self.config.iterations)[0]

    def _search(self, z: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        cfg: OptimizationConfig = self.config
        centre, pull = self._centre(z), self.prior / self._variance

        def objective(x: Tensor) -> Tensor:
            value = self._residual(x, z).square().sum(1) / 2 + pull * (x - centre).flatten(1).square().sum(1) / 2
            return value + self.tv * total_variation(x) if self.tv else value

        def from_start(start: Tensor) -> tuple[Tensor, Tensor]:
            if self._newton is not None:
                return self._newton(objective, z, start, centre, pull, -(-iterations // 4), self.late)
            return descend(objective, start, iterations=iterations, lr=cfg.lr, late=self.late)

        return lowest_of(from_start(self._start(number, z)) for number in range(cfg.restarts))

    def _centre(self, z: Tensor) -> Tensor:
        if self.config.anchor == "mean":
            return self._mean.expand(len(z), *self._mean.shape)
        return self._linear(z).reshape(len(z), *self._mean.shape)

    def _start(self, number: int, z: Tensor) -> Tensor:
        if number == 1:
            return self._mean.expand(len(z), *self._mean.shape).clone()
        sketch = self._linear(z).reshape(len(z), *self._mean.shape).clamp(0, 1)
        if number == 0:
            return sketch
        # One draw for all images: what an image gets does not depend on the others in its batch.
        seeded = torch.Generator().manual_seed(derive_seed(self.config.seed, "restart", number))
        return (sketch + 0.1 * torch.randn(sketch.shape[1:], generator=seeded).to(sketch)).clamp(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        """The linear solution, the mean image and the chosen weights."""
        chosen = torch.tensor([self.tv, self.prior, self._variance])
        return {**self._linear._asdict(), "mean": self._mean, "chosen": chosen}


def total_variation(x: Tensor) -> Tensor:
    """Sum over an image of `|x[i+1, j] - x[i, j]| + |x[i, j+1] - x[i, j]|`, smooth below 0.01, (N, C, H, W) -> (N,)."""
    steps = [x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)]
    return (torch.cat(steps, 1).square() + 1e-4).sqrt().sum(1)


def _never() -> bool:
    return False


def descend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    iterations: int,
    lr: float,
    late: Callable[[], bool] = _never,
) -> tuple[Tensor, Tensor]:
    """Adam within [0, 1] on every row of `start` (N, ...) by itself, along a cosine to 0, down `objective` (N,), whose
    values depend on their own rows alone; the best point of each row on the way, (N, ...), and its objective (N,).
    """
    point = start.detach().clone().requires_grad_()
    best, lowest = start.detach().clone(), torch.full((len(start),), torch.inf, device=start.device)
    wide = (-1, *(1,) * (start.ndim - 1))
    # Adam works number by number: rows never mix, so a batch gives what its images give one by one.
    adam = torch.optim.Adam([point], lr, betas=(0.9, 0.99), eps=1e-12)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for number in range(iterations + 1):
        with torch.enable_grad():
            value = objective(point)
            (point.grad,) = torch.autograd.grad(value.sum(), point)
        with torch.no_grad():
            better = value < lowest
            lowest = torch.where(better, value, lowest)
            best = torch.where(better.reshape(wide), point, best)
            if number == iterations or late():
                break
            adam.step()
            anneal.step()
            point.clamp_(0, 1)
    return best, lowest


def lowest_of(found: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of several (points (N, ...), objectives (N,)) for each row the point whose objective is the smallest."""
    points, values = (torch.stack(part) for part in zip(*found, strict=True))
    rows = torch.arange(points.shape[1], device=points.device)
    best = values.argmin(0)
    return points[best, rows], values[best, rows]


class Newton:
    r"""Minimises `|r(x)|^2 / 2 + pull |x - c|^2 / 2` over images in [0, 1] without the gradient of r.

        x <- x - t B (J^T J + pull I)^-1 (J^T r + pull B^T (x - c)),    J_k = (r(x + h b_k) - r(x)) / h

    along orthonormal directions b_k, with the t among 1, 1/2, 1/4 and 1/10 that lowers the objective most; every row
    by itself, until none gains any more. Small images (up to 1,024 values) move in every pixel, and J is that of each
    image at each step. Larger ones move in every pixel by the J of the mean image, as far as that fits into memory: for
    an encoder that is nearly linear this is as good. Beyond, they move along 256 principal components.
    """

    def __init__(self, observer: Observer, residual: Residual, indices: Tensor) -> None:
        self._residual = residual
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
            self._shared = self._slopes(mean, observer.features(mean))

    def _slopes(self, x: Tensor, seen: Tensor) -> Tensor:
        """Differences in place of derivatives, (1, C, H, W) and (1, ...) -> (r, D)."""
        here = self._residual(x, seen)
        most = max(1, _AT_ONCE // max(self._basis.shape[1], here.shape[1]))
        moved = ((x.flatten(1) + _STEP * part).reshape(-1, *x.shape[1:]) for part in self._basis.split(most))
        return torch.cat([(self._residual(near, seen) - here) / _STEP for near in moved])

    @torch.no_grad()
    def __call__(
        self, objective: Callable[[Tensor], Tensor], seen: Tensor, start: Tensor, centre: Tensor, pull: float,
        iterations: int, late: Callable[[], bool],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Images (n, C, H, W) and their objectives (n,) from a start and towards a centre, both (n, C, H, W)."""
        best, lowest = start.clone(), objective(start)
        shared = None if self._shared is None else (self._shared, _factor(self._shared, pull))
        for _ in range(iterations):
            before = lowest
            # One by one where every image has slopes of its own, which are many.
            rows = torch.arange(len(start), device=start.device).split(1 if shared is None else len(start))
            steps = torch.cat([self._step(best[row], seen[row], centre[row], pull, shared) for row in rows])
            tried = [(best, lowest)]
            for share in _SHARES:
                x = (best - share * steps).clamp(0, 1)
                tried.append((x, objective(x)))
            best, lowest = lowest_of(tried)
            if bool((before - lowest <= _AT_REST * before).all()) or late():
                break
        return best, lowest

    def _step(
        self, x: Tensor, seen: Tensor, centre: Tensor, pull: float, shared: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if shared is None:
            slopes = self._slopes(x, seen)
            shared = slopes, _factor(slopes, pull)
        slopes, factor = shared
        here = self._residual(x, seen) @ slopes.T + pull * (x - centre).flatten(1) @ self._basis.T
        step = torch.cholesky_solve(here.double().T, factor).T.to(x)
        return (step @ self._basis).reshape(x.shape)


def _factor(slopes: Tensor, pull: float) -> Tensor:
    """The Cholesky factor of the curvature, (r, r) float64."""
    wide = slopes.double()
    curvature = wide @ wide.T
    # Where neither feature nor prior says anything, nothing moves.
    curvature.diagonal().add_(pull + 1e-9 * curvature.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return torch.linalg.cholesky(curvature)
