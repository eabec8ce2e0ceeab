"""Optimisation in the latent space of a generator that has learned what the attacker's images look like."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.attacks.base import Fit, Job, Observer, hold_out
from sfumato.attacks.descent import Likelihood, descend, lowest_of
from sfumato.attacks.learned import LearnedAttack, Random, Turn
from sfumato.attacks.learner import Learner
from sfumato.attacks.linear import Linear, best_linear
from sfumato.attacks.settings import AdamConfig
from sfumato.errors import ConfigError
from sfumato.metrics import mse
from sfumato.models import Autoencoder
from sfumato.modes import evaluating
from sfumato.seeds import derive_seed, generator

__all__ = ["LatentAttack", "LatentConfig"]

_PRIORS = (0.1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class LatentConfig(AdamConfig):
    """Settings of optimisation in a generator's latent space.

    Attributes:
        code: Dimension of the latent space.
        noise: Standard deviation of a pixel given its code. The smaller, the closer the generator keeps to its
            images.
        images: How many images of a set it is tried on. Each costs `restarts` times `iterations` passes.
        iterations: Steps of Adam on the code.
        step: Step size of Adam on the code.
        restarts: Starting points. The code of the linear solution, 0, then draws from N(0, I).
        prior: Weight of the code's Gaussian prior. None takes the best of a few on held-out images.
        choose_on: Held-out images for that choice.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.0
    code: int = 128
    noise: float = 0.05
    width: int = 32
    blocks: int = 1
    images: int = 64
    iterations: int = 150
    step: float = 0.05
    restarts: int = 3
    prior: float | None = None
    choose_on: int = 16


class LatentAttack(LearnedAttack[LatentConfig]):
    """Minimises a regularised negative log-likelihood over the code w of a generator G.

        |z_hat(G(w)) - z|^2 / (2 sigma^2) + prior |w|^2 / 2

    G is the decoder of a variational autoencoder that is trained on the attacker's images with the objective
    `|x - G(w)|^2 / (2 noise^2) + KL`. The start with the smallest value of this objective is the answer. It can only
    answer with images that G can draw, which helps where the feature says little.
    """

    name: ClassVar[str] = "latent"
    settings: ClassVar[type[Any]] = LatentConfig
    figures: ClassVar[tuple[str, ...]] = ("mse", "divergence")

    def __init__(self, config: LatentConfig | None = None) -> None:
        super().__init__(config)
        self.most_images = self.config.images
        self.prior = 1.0
        self._linear: Linear | None = None
        self._likelihood: Likelihood | None = None

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        cfg = self.config
        return {"net": Autoencoder(observer.image_shape, code=cfg.code, width=cfg.width, blocks=cfg.blocks)}

    def _input_shape(self, name: str, observer: Observer) -> tuple[int, ...]:
        return observer.image_shape

    def _batch(self, observer: Observer, indices: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        x = observer.pixels(indices)
        return x, x  # the generator learns from images alone

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        net = learner.net
        assert isinstance(net, Autoencoder)
        mean, log_variance = net.encode(turn.x)
        x_hat = net.decode(net.sample(mean, log_variance, turn.random("code")))
        error = (x_hat - turn.x).square()
        divergence = net.divergence(mean, log_variance).mean()
        loss = error.flatten(1).sum(1).mean() / (2 * self.config.noise**2) + divergence
        self._descend(learner, loss / turn.x[0].numel())
        return torch.stack([error.mean(), divergence]).detach()

    def _judge(self, net: nn.Module, observer: Observer, judge: Tensor, bf16: bool) -> float:
        """How well the generator draws images that it has not seen."""
        with evaluating(net):
            parts = [mse(x, net(x)) for part in judge.split(1024) if len(x := observer.pixels(part))]
        return float(torch.cat(parts).double().mean())

    def learn(self, observer: Observer, job: Job) -> None:
        """Train the generator, then choose the prior's weight on held-out images."""
        cfg = self.config
        if not observer.white_box:
            raise ConfigError(
                "the latent attack needs the gradient of the encoder, which this attacker cannot compute; use "
                "optimization, or an attack that only needs pairs, such as strong, ridge or nearest"
            )
        super().learn(observer, job)
        assert self.net is not None
        self.net.requires_grad_(False)
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self._linear = best_linear(observer, learn, judge, seed=cfg.seed)[0]
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        self._likelihood = Likelihood(observer)
        few_x, few_z = x[: cfg.choose_on], z[: cfg.choose_on]
        errors: dict[float, float] = {}
        for prior in _PRIORS if cfg.prior is None else (cfg.prior,):
            self.prior = prior
            errors[prior] = float(mse(few_x, self.answer(few_z)).mean())
        self.prior = min(errors, key=lambda prior: errors[prior])
        assert self.outcome is not None
        reason = f"generator: {self.outcome.reason}; prior {self.prior:g} chosen on {len(few_x)} images"
        self.outcome = Fit(self.outcome.converged, reason, errors[self.prior], self.outcome.trivial_mse)

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1], each by an optimisation of its own."""
        assert isinstance(self.net, Autoencoder)
        assert self._likelihood is not None
        assert self._linear is not None
        with evaluating(self.net):
            return self._search(self.net, self._likelihood, self._linear, seen)

    def _search(self, net: Autoencoder, likelihood: Likelihood, linear: Linear, z: Tensor) -> Tensor:
        cfg = self.config
        sketch = linear(z).reshape(len(z), *net.write.image_shape).clamp(0, 1)

        def objective(code: Tensor) -> Tensor:
            return likelihood(net.decode(code), z) + self.prior * code.square().sum(1) / 2

        def start(number: int) -> Tensor:
            if number == 0:
                return net.encode(sketch)[0]
            # One draw for all images: what an image gets does not depend on the others in its batch.
            seeded = torch.Generator().manual_seed(derive_seed(cfg.seed, "restart", number))
            return torch.randn(cfg.code, generator=seeded).to(z).expand(len(z), -1) * (number > 1)

        found = (descend(objective, start(n), iterations=cfg.iterations, lr=cfg.step) for n in range(cfg.restarts))
        return net.decode(lowest_of(found)[0])

    def tensors(self) -> dict[str, Tensor]:
        """The generator, the linear solution that gives a start, and the chosen weight."""
        assert self._linear is not None
        return {**super().tensors(), **self._linear._asdict(), "prior": torch.tensor(self.prior)}
