"""What a released feature tells about the clean one, at most, by its enforced norm, whatever the data."""

import torch
from torch import Tensor

from sfumato.bounds._inputs import ArrayLike, as_tensors, require_dim
from sfumato.errors import ConfigError, FeatureError


def clipped_power_information(radius: ArrayLike, noise_std: ArrayLike, dim: int) -> Tensor:
    """Information of a clipped feature, `I(z; z_hat) <= D/2 log(1 + R^2 / (D sigma^2))`, in nats.

    The capacity of D parallel Gaussian channels under a total power R^2, which is spread evenly at best
    (Shannon 1949; Cover and Thomas, Elements of Information Theory, section 9.4).

    Assumption: `|z_hat|_2 <= R` is enforced on the device for every input (the ball may have any fixed
    centre), and eps ~ N(0, sigma^2 I) is independent of it. Nothing is assumed about the data.

    Args:
        radius: R >= 0; any shape.
        noise_std: sigma > 0, a standard deviation (not a variance); broadcast against `radius`.
        dim: D, the number of feature dimensions.

    Returns:
        The bound, in the broadcast shape. R = 0 gives 0; D -> infinity gives R^2 / (2 sigma^2).

    Raises:
        ConfigError: sigma is not positive (the bound would be infinite), R is negative, either is NaN, or
            `dim` is not a positive integer.
        FeatureError: shapes that cannot be broadcast.

    >>> print(f"{clipped_power_information(1.0, 0.5, dim=4):.4f}")  # 2 log 2
    1.3863
    """
    bound, sigma = as_tensors(radius=radius, noise_std=noise_std)
    size = require_dim(dim)
    if not bool((sigma.detach() > 0).all()):
        raise ConfigError("noise_std is not positive: without noise the information is not bounded; pass sigma > 0")
    if not bool((bound.detach() >= 0).all()):
        raise ConfigError("radius is negative or NaN; pass the largest norm |z_hat|_2 that the clipping lets pass")
    try:
        ratio = bound / sigma
    except RuntimeError as error:
        raise FeatureError(
            f"radius {tuple(bound.shape)} and noise_std {tuple(sigma.shape)} do not broadcast; "
            "pass one value of each, or equal shapes"
        ) from error
    return size / 2 * torch.log1p(ratio**2 / size)
