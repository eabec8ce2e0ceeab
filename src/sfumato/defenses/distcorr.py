"""DistCorr (NoPeek): the feature is trained to depend little on the image, as distance correlation measures it."""

from typing import ClassVar

import torch
from torch import Tensor

from sfumato.defenses.base import Batch, Defense
from sfumato.defenses.registry import register
from sfumato.distributed import whole
from sfumato.errors import ConfigError, FeatureError


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Sample distance correlation of paired samples (Székely, Rizzo and Bakirov 2007), a scalar in [0, 1].

    With `a_ij = |x_i - x_j|`, `b_ij = |y_i - y_j|`, and A, B the same matrices with row and column means taken off and
    the overall mean added,

        dCor = sqrt( <A, B> / sqrt(<A, A> <B, B>) ),   <A, B> = 1/n^2 sum_ij A_ij B_ij

    1 for y = a x + b, and 0 in the limit for independent samples; small samples in high dimensions are biased upwards.
    A constant sample gives 0.

    Args:
        x: (n, ...).
        y: (n, ...), of any other shape.

    Raises:
        FeatureError: the numbers of samples differ.
    """
    if len(x) != len(y) or min(x.ndim, y.ndim) < 1:
        raise FeatureError(
            f"distance correlation needs pairs, got {tuple(x.shape)} and {tuple(y.shape)}; "
            "give as many samples of one as of the other"
        )
    a, b = _centred(x), _centred(y)
    product = (a * b).mean().clamp_min(0.0)
    scale = (a.square().mean() * b.square().mean()).sqrt()
    tiny = torch.finfo(scale.dtype).tiny
    # Away from 0 before the root, whose slope there is infinite.
    return (product / scale.clamp_min(tiny) + tiny).sqrt()


def _centred(values: Tensor) -> Tensor:
    flat = values.flatten(1) if values.ndim > 1 else values[:, None]
    with torch.autocast(flat.device.type, enabled=False):
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        # Not through |x|^2 - 2 x y + |y|^2: features that lie close together would cancel.
        distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()


@register
class DistCorr(Defense):
    """Adds `alpha * dCor(x, z_hat)` over the batch to the loss.

    Source: Vepakomma et al., NoPeek, ICDMW 2020 (the paper's [54] and, with more noise, Noise_NoPeek). As in the
    authors' code the feature is the one before the noise. Their alpha is a script's parameter that no table states;
    ours is a choice, made the same for every data set, where their code takes a tenth of it outside CIFAR-10. In
    data-parallel training the batch is that of all ranks: pairs of images of different ranks count too.

    Args:
        alpha: weight of the distance correlation.

    Raises:
        ConfigError: alpha is negative.
    """

    name: ClassVar[str] = "distcorr"
    replayable = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha < 0:
            raise ConfigError(f"alpha is {alpha}, which would reward leaking; give 0 or more")
        self.alpha = alpha
        self.last: Tensor
        self.register_buffer("last", torch.zeros(()))

    def penalty(self, batch: Batch) -> Tensor | None:
        """alpha times the distance correlation of the batch."""
        value = distance_correlation(whole(batch.images), whole(batch.features))
        self.last.copy_(value.detach())
        return self.alpha * value

    def report(self) -> dict[str, float]:
        """The last batch's distance correlation."""
        return {"correlation": float(self.last)}
