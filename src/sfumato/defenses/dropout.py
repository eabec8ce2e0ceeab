"""Dropout: a random part of the feature is set to zero on the device, in training and at inference."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sfumato.defenses.base import Defense
from sfumato.defenses.registry import register
from sfumato.errors import ConfigError


class RandomDrop(nn.Module):
    """Every coordinate becomes 0 with probability `rate`, anew in every call; the others are not rescaled."""

    stochastic: ClassVar[bool] = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"rate is {rate}; give the share of the feature to drop, 0 up to below 1")
        self.rate = rate

    def forward(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = feature.device if generator is None else generator.device
        uniform = torch.rand(feature.shape, generator=generator, device=device)
        return self.with_uniform(feature, uniform.to(feature.device))

    def with_uniform(self, feature: Tensor, uniform: Tensor) -> Tensor:
        """The same with numbers in [0, 1) of the feature's shape that were drawn elsewhere, as exported encoders do."""
        return feature * (uniform >= self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@register
class Dropout(Defense):
    """Sets 20 % of the feature to zero, on the wire of classifier and attacker alike, without rescaling.

    Source: He, Zhang and Lee, Attacking and protecting data privacy in edge-cloud collaborative inference systems, IEEE
    Internet of Things Journal 2020 (the paper's [15]). Deviation
    from the authors' code: there the attacker trains on features that were not dropped; here nobody ever sees those.
    With CEM the mixture is that of the feature before dropping, whose information bounds that of the dropped one: given
    the mask, what arrives is a part of z_hat + noise.

    Args:
        rate: share of the coordinates that is set to zero.
    """

    name: ClassVar[str] = "dropout"
    replayable = True
    changes_released_features: ClassVar[bool] = True

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self._transform = RandomDrop(rate)

    def transform(self) -> nn.Module:
        """The random mask."""
        return self._transform
