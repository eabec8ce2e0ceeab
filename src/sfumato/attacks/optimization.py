"""Optimisation: the image whose feature comes nearest to the one seen, among images that look like images."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sfumato import checkpoint
from sfumato.attacks.base import Attack, Fit, Job, Observer, hold_out
from sfumato.attacks.descent import Likelihood, Newton, descend, lowest_of, total_variation
from sfumato.attacks.linear import Linear, best_linear
from sfumato.attacks.settings import AttackConfig
from sfumato.errors import CheckpointError, ConfigError, Interrupted
from sfumato.metrics import mse
from sfumato.seeds import derive_seed, generator

__all__ = ["OptimizationAttack", "OptimizationConfig"]

_TV = (0.0, 0.03, 0.3, 3.0)  # nats per unit of total variation
_PRIORS = (0.01, 0.1, 1.0)  # of the Gaussian around the linear solution, relative to its own error


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

    Where the encoder is at hand but has no gradient (an ONNX file), the same is minimised without TV by Gauss-Newton
    steps whose slopes are differences (`descent.Newton`).
    """

    name: ClassVar[str] = "optimization"
    settings: ClassVar[type[Any]] = OptimizationConfig

    def __init__(self, config: OptimizationConfig | None = None) -> None:
        super().__init__(config)
        cfg: OptimizationConfig = self.config
        self.most_images = cfg.images
        self.tv, self.prior = 0.0, 1.0
        self._linear: Linear | None = None
        self._likelihood: Likelihood | None = None
        self._newton: Newton | None = None  # where there are no gradients
        self._mean = torch.empty(0)
        self._variance = 1.0

    def learn(self, observer: Observer, job: Job) -> None:
        """Fit the linear solution and choose the weights, which `job.state` remembers one by one."""
        cfg: OptimizationConfig = self.config
        if not observer.has_encoder:
            raise ConfigError(
                "the optimization attack needs the encoder, which this attacker does not have; use an attack that only "
                "needs pairs, such as strong, ridge or nearest"
            )
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self._linear = best_linear(observer, learn, judge, seed=cfg.seed)[0]
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        self._likelihood = Likelihood(observer)
        self._newton = None if observer.white_box else Newton(observer, self._likelihood, learn)
        self._mean = observer.pixels(learn[:4096]).mean(0)
        self._variance = float((x - self._centre(z)).square().mean().clamp_min(1e-8))
        few_x, few_z = x[: cfg.choose_on], z[: cfg.choose_on]
        identity = {"attack": asdict(cfg), "images": observer.images.fingerprint(), "features": "whitened"}
        errors = _known(job.state, identity)
        tvs = (0.0,) if self._newton is not None else _TV if cfg.tv is None else (cfg.tv,)
        priors = _PRIORS if cfg.prior is None else (cfg.prior,)
        total = len(priors) + len(tvs) - 1

        def judge_weights(tv: float, prior: float) -> float:
            key = f"{tv} {prior}"
            if key not in errors:
                self.tv, self.prior = tv, prior
                errors[key] = float(mse(few_x, self.answer(few_z)).mean())
                if job.state is not None:
                    checkpoint.save(job.state, {}, {"identity": identity, "errors": errors})
                job.tell(len(errors), total, mse=errors[key], held_out_mse=min(errors.values()))
                if job.stopped() and len(errors) < total:
                    raise Interrupted("the attack was stopped; the same command resumes there")
            return errors[key]

        prior = min(priors, key=lambda prior: judge_weights(tvs[0], prior))
        tv = min(tvs, key=lambda tv: judge_weights(tv, prior))
        self.tv, self.prior = tv, prior
        self.outcome = self._outcome(few_x, few_z, judge_weights(tv, prior))

    def _outcome(self, x: Tensor, z: Tensor, error: float) -> Fit:
        short = self._search(z, max(1, self.config.iterations // 2))[1]
        whole = self._search(z, self.config.iterations)[1]
        gain = float((short.sum() - whole.sum()) / short.sum().abs().clamp_min(1e-12))
        chosen = f"total variation {self.tv:g}, prior {self.prior:g}"
        if gain > 0.02:
            return Fit(False, f"twice the iterations still lowered the objective by {gain:.0%}; iterate longer", error)
        words = f"the second half of the iterations lowered the objective by {max(gain, 0):.1%} ({chosen})"
        return Fit(True, words, error)

    @torch.no_grad()
    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1], each by an optimisation of its own."""
        return self._search(seen, self.config.iterations)[0]

    def _search(self, z: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        cfg: OptimizationConfig = self.config
        assert self._likelihood is not None
        likelihood = self._likelihood
        centre = self._centre(z)

        def objective(x: Tensor) -> Tensor:
            value = likelihood(x, z) + self.prior * (x - centre).flatten(1).square().sum(1) / (2 * self._variance)
            return value + self.tv * total_variation(x) if self.tv else value

        def from_start(start: Tensor) -> tuple[Tensor, Tensor]:
            if self._newton is not None:
                return self._newton(z, start, centre, self.prior / self._variance, -(-iterations // 4))
            return descend(objective, start, iterations=iterations, lr=cfg.lr, bounds=(0.0, 1.0))

        return lowest_of(from_start(self._start(number, z)) for number in range(cfg.restarts))

    def _centre(self, z: Tensor) -> Tensor:
        if self.config.anchor == "mean":
            return self._mean.expand(len(z), *self._mean.shape)
        return self._sketch(z)

    def _sketch(self, z: Tensor) -> Tensor:
        assert self._linear is not None
        return self._linear(z.float()).reshape(len(z), *self._mean.shape)

    def _start(self, number: int, z: Tensor) -> Tensor:
        if number == 1:
            return self._mean.expand(len(z), *self._mean.shape).clone()
        sketch = self._sketch(z).clamp(0, 1)
        if number == 0:
            return sketch
        # One draw for all images: what an image gets does not depend on the others in its batch.
        seeded = torch.Generator().manual_seed(derive_seed(self.config.seed, "restart", number))
        return (sketch + 0.1 * torch.randn(sketch.shape[1:], generator=seeded).to(sketch)).clamp(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        """The linear solution, the mean image and the chosen weights."""
        assert self._linear is not None
        chosen = torch.tensor([self.tv, self.prior, self._variance])
        return {**self._linear._asdict(), "mean": self._mean, "chosen": chosen}


def _known(state: Path | None, identity: dict[str, Any]) -> dict[str, float]:
    """The errors of the weights that were tried in an earlier call."""
    if state is None or not state.exists():
        return {}
    meta = checkpoint.load(state)[1]
    if meta.get("identity") != identity:
        raise CheckpointError(f"{state} belongs to an attack with other settings or images; delete it to start anew")
    errors: dict[str, float] = meta["errors"]
    return errors
