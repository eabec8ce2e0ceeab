"""Theorem 1 without the unknown entropy of the data: by how much an information bound moves the floor."""

import torch
from torch import Tensor

from sfumato.bounds._inputs import ArrayLike, as_tensors, require_dim
from sfumato.errors import FeatureError


def floor_ratio(information: ArrayLike, dim: int) -> Tensor:
    """Floor of Theorem 1 with I nats released, over the floor with nothing released, `exp(-2 I / d)`.

    `minimal_mse(H(x) - I, d) / minimal_mse(H(x), d)`: H(x), which nobody knows for real images, cancels.

    Assumption: `information` is an upper bound on I(z; z_hat); the ratio then is a lower bound on the ratio of the
    floors. It is *relative*: it says how far the floor has sunk, not where it is, and no error of an attack can be
    compared with it.

    Args:
        information: I >= 0 in nats; any shape. Infinity (no noise) gives 0.
        dim: d, the number of input dimensions.

    Returns:
        The ratio in [0, 1], same shape. I = 0 gives 1; I = d log(2) / 2 gives 1/2.

    Raises:
        FeatureError: NaN or negative information.
        ConfigError: `dim` is not a positive integer.

    >>> print(f"{floor_ratio(2.0, dim=4):.4f}")  # 1 / e
    0.3679
    """
    (nats,) = as_tensors(information=information)
    if bool((nats.detach() < 0).any()) or bool(torch.isnan(nats.detach()).any()):
        raise FeatureError("information holds NaN or negative values; pass an upper bound on I(z; z_hat) in nats")
    return torch.exp(-2 * nats / require_dim(dim))
