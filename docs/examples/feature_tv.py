"""A defence in one file: the released feature map is trained to be smooth."""

from typing import ClassVar

from torch import Tensor

from sfumato.defenses import Batch, Defense, Site, register
from sfumato.errors import ConfigError


@register
class FeatureTV(Defense):
    """Adds `alpha * TV / D` to the loss: fine detail of the feature map is what fine detail is reconstructed from.

        TV = 1/2 (mean |z_hat[.., i+1, j] - z_hat[.., i, j]| + mean |z_hat[.., i, j+1] - z_hat[.., i, j]|)
        D  = mean |z_hat - m|,    m: mean of each channel over the batch and all positions

    Scaling the feature changes nothing, so making it small is no way out. 1.41 for independent Gaussian values.
    """

    name: ClassVar[str] = "feature_tv"

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        if alpha < 0:
            raise ConfigError(f"alpha is {alpha}, which would reward detail; give 0 or more")
        self.alpha = alpha

    def attach(self, site: Site) -> None:
        """Refuse features that are no map of at least 2x2."""
        if len(site.feature_shape) != 3 or min(site.feature_shape[1:]) < 2:
            raise ConfigError(f"feature_tv needs a feature map, not {site.feature_shape}; cut the network earlier")

    def penalty(self, batch: Batch) -> Tensor:
        """alpha times the relative total variation of the batch."""
        z = batch.features.float()
        variation = (z.diff(dim=2).abs().mean() + z.diff(dim=3).abs().mean()) / 2
        spread = (z - z.mean((0, 2, 3), keepdim=True)).abs().mean()
        return self.alpha * variation / spread.clamp_min(1e-12)
