"""Derivatives of the feature with respect to the image, for the bounds that rest on them."""

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.split.model import SplitModel

__all__ = ["jacobian", "projected_jacobian"]

_AT_ONCE = 128


def jacobian(model: SplitModel, x: Tensor) -> Tensor:
    """J = d z_hat / d x at every image, exactly: one backward pass per value of the feature.

    The rows of one image are computed 128 together, from as many copies of it: in evaluation mode an encoder treats the
    images of a batch independently.

    Args:
        model: in evaluation mode, differentiable.
        x: (n, C, H, W) images.

    Returns:
        (n, D, d) float32 with D values of the feature and d = C H W.

    Raises:
        ConfigError: the encoder passes no gradient.

    >>> from torch import nn
    >>> from sfumato.split import Channel
    >>> edge = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> edge[1].weight.data = torch.tensor([[2.0, -3.0]])
    >>> jacobian(SplitModel(edge, Channel(), nn.Identity()).eval(), torch.rand(1, 1, 1, 2))
    tensor([[[ 2., -3.]]])
    """
    return torch.stack([_products(model, image, torch.eye(_size(model, x), device=x.device)) for image in x])


def projected_jacobian(model: SplitModel, x: Tensor, probes: int, generator: torch.Generator | None = None) -> Tensor:
    """Random projections `V J / sqrt(probes)` of J = d z_hat / d x with V (probes, D) standard normal.

    `E[(V J)^T (V J)] / probes = J^T J`, so traces and Fisher matrices computed from these rows in the place of J are
    unbiased (Hutchinson), whatever D is.

    Args:
        model: in evaluation mode, differentiable.
        x: (n, C, H, W) images.
        probes: rows per image.
        generator: of V, on the CPU.

    Returns:
        (n, probes, d) float32.

    Raises:
        ConfigError: the encoder passes no gradient, or there are no probes.
    """
    if probes < 1:
        raise ConfigError(f"probes is {probes}; give at least 1")
    size = _size(model, x)
    rows = (torch.randn(probes, size, generator=generator).to(x.device) / probes**0.5 for _ in x)
    return torch.stack([_products(model, image, own) for image, own in zip(x, rows, strict=True)])


@torch.no_grad()
def _size(model: SplitModel, x: Tensor) -> int:
    return model.features(x[:1]).numel()


def _products(model: SplitModel, image: Tensor, rows: Tensor) -> Tensor:
    """`rows @ J` for one image (C, H, W), some rows at a time."""
    found = []
    for part in rows.split(_AT_ONCE):
        copies = image.expand(len(part), *image.shape).detach().clone().requires_grad_()
        z_hat = model.features(copies).flatten(1)
        if not z_hat.requires_grad:
            raise ConfigError("the encoder passes no gradient to its input, so it has no Jacobian to compute")
        (slope,) = torch.autograd.grad((z_hat * part).sum(), copies)
        found.append(slope.flatten(1).detach().float())
    return torch.cat(found)
