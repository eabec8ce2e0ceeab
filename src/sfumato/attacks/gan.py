"""The GAN attack: the decoding attack's network, which also has to satisfy a critic that knows real images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.attacks.base import Observer
from sfumato.attacks.learned import LearnedAttack, LearnedConfig, Learner, Turn
from sfumato.compute import autocast
from sfumato.models import Critic

__all__ = ["GanAttack", "GanConfig", "gradient_penalty"]


@dataclass(frozen=True, kw_only=True)
class GanConfig(LearnedConfig):
    """Settings of the GAN attack; the defaults are those of the authors' code.

    Attributes:
        generator_lr: Learning rate of the generator's Adam. Annealed to 0 along a cosine.
        critic_lr: Learning rate of the critic's Adam. Annealed likewise. (The paper's text gives this 0.005 as
            the only rate.)
        critic_steps: Steps of the critic for each one of the generator.
        mse_weight: Weight of the MSE in the generator's loss.
        gradient_penalty: Weight of the gradient penalty in the critic's loss.

    >>> GanConfig().mse_weight
    1500.0
    """

    epochs: int = 150
    generator_lr: float = 5e-4
    critic_lr: float = 5e-3
    critic_steps: int = 10
    mse_weight: float = 1500.0
    gradient_penalty: float = 10.0


class GanAttack(LearnedAttack[GanConfig]):
    """A Wasserstein GAN with gradient penalty whose generator `net` starts from what leaves the device.

        critic:     minimise  mean D(x_hat) - mean D(x) + 10 mean (|grad D(m)| - 1)^2
        generator:  minimise  -mean D(x_hat) + 1500 MSE(x_hat, x),     x_hat = net(encode(x))

    with m uniformly on the line from x_hat to x, image by image (Zhang et al. 2020; the paper replaces their generator
    by the network of the decoding attack and adds the MSE).

    "10 critic steps per generator step" is read as in Zhang et al.'s loop: the critic steps on every batch and the
    generator on every 10th one, counted over all epochs, so that an epoch has a tenth as many generator steps as one
    of the decoding attack. On such a batch the generator answers to the critic that has just stepped.

    Figures per epoch: `mse` over all batches, `critic_gap = mean D(x) - mean D(x_hat)`, the critic's estimate of the
    Wasserstein distance.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train.subset(torch.arange(200))
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> attack = GanAttack(GanConfig(epochs=1, width=4, blocks=0)).fit(Observer(model, digits))
    >>> print(f"{attack.outcome.held_out_mse:.3f}", *attack.figures)
    0.005 mse critic_gap
    """

    name: ClassVar[str] = "gan"
    settings: ClassVar[type[Any]] = GanConfig
    figures: ClassVar[tuple[str, ...]] = ("mse", "critic_gap")

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        return {"net": self._inverter(observer), "critic": Critic(observer.image_shape, width=self.config.width)}

    def _optimizers(self, networks: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        rates = {"net": self.config.generator_lr, "critic": self.config.critic_lr}
        return {
            f"{name}_optimizer": torch.optim.Adam(networks[name].parameters(), lr, betas=(0.5, 0.999), fused=True)
            for name, lr in rates.items()
        }

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        moves = (turn.number + 1) % self.config.critic_steps == 0
        # No graph through the generator on batches where only the critic steps.
        with torch.set_grad_enabled(moves), autocast(turn.x.device, turn.bf16):
            x_hat = learner.net(turn.z).float()
        critic = learner.networks["critic"]
        with autocast(turn.x.device, turn.bf16):
            real, reconstructed = critic(torch.cat([turn.x, x_hat.detach()])).float().chunk(2)
        gap = real.mean() - reconstructed.mean()
        mix = torch.rand(len(x_hat), 1, 1, 1, generator=turn.random("mix"), device=x_hat.device)
        penalty = gradient_penalty(critic, turn.x, x_hat.detach(), mix)
        self._descend(learner, self.config.gradient_penalty * penalty - gap, "critic_optimizer")
        error = (x_hat - turn.x).square().mean()
        if moves:
            with autocast(turn.x.device, turn.bf16):
                score = critic(x_hat).float().mean()
            # The critic only passes its judgement on: the gradient of its own weights is not computed.
            inputs = list(learner.net.parameters())
            self._descend(learner, self.config.mse_weight * error - score, "net_optimizer", inputs=inputs)
        return torch.stack([error.detach(), gap.detach()])


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, x_hat: Tensor, mix: Tensor) -> Tensor:
    """`mean_i (|grad D(m_i)| - 1)^2` with `m_i = mix_i x_i + (1 - mix_i) x_hat_i` (Gulrajani et al. 2017).

    A critic that grows by at most 1 per unit of distance measures the Wasserstein distance. Differentiable with respect
    to the critic's weights, not to the images.

    Args:
        critic: (N, C, H, W) -> (N,), each score depending on its own image alone.
        x: (N, C, H, W) real images.
        x_hat: (N, C, H, W) reconstructed images.
        mix: (N, 1, 1, 1) in [0, 1].

    Returns:
        A scalar; 0 where every gradient has length 1.

    >>> x = torch.rand(5, 1, 2, 2)
    >>> print(f"{gradient_penalty(lambda x: x.sum((1, 2, 3)), x, 1 - x, torch.rand(5, 1, 1, 1)):.1f}")  # (2 - 1)^2
    1.0
    """
    between = torch.lerp(x_hat.detach(), x.detach(), mix).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
