"""Derivatives of the feature with respect to the image, for the bounds that rest on them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.split.model import SplitModel

__all__ = ["jacobian", "projected_jacobian"]

_AT_ONCE = 128


def jacobian(model: SplitModel, x: Tensor, *, at_once: int = _AT_ONCE) -> Tensor:
    """J = d z_hat / d x at every image, exactly: one backward pass per value of the feature.

    The rows of one image are computed `at_once` together, from as many copies of it: in evaluation mode an encoder
    treats the images of a batch independently.

    Args:
        model: in evaluation mode, differentiable.
        x: (n, C, H, W) images.
        at_once: copies per pass.

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
    with torch.no_grad():
        size = model.features(x[:1]).numel()
    rows = torch.eye(size, device=x.device)
    return torch.stack([torch.cat(list(_products(model, image[None], rows, at_once))) for image in x])


def projected_jacobian(
    model: SplitModel, x: Tensor, probes: int, generator: torch.Generator | None = None, *, at_once: int = _AT_ONCE
) -> Tensor:
    """Random projections `V J / sqrt(probes)` of J = d z_hat / d x with V (probes, D) standard normal.

    `E[(V J)^T (V J)] / probes = J^T J`, so traces and Fisher matrices computed from these rows in the place of J are
    unbiased (Hutchinson), whatever D is.

    Args:
        model: in evaluation mode, differentiable.
        x: (n, C, H, W) images.
        probes: rows per image.
        generator: of V, on the CPU.
        at_once: copies of an image per pass.

    Returns:
        (n, probes, d) float32.

    Raises:
        ConfigError: the encoder passes no gradient, or there are no probes.
    """
    if probes < 1:
        raise ConfigError(f"probes is {probes}; give at least 1")
    with torch.no_grad():
        size = model.features(x[:1]).numel()
    parts = []
    for image in x:
        rows = torch.randn(probes, size, generator=generator).to(x.device) / probes**0.5
        parts.append(torch.cat(list(_products(model, image[None], rows, at_once))))
    return torch.stack(parts)


def _products(model: SplitModel, image: Tensor, rows: Tensor, at_once: int) -> Iterator[Tensor]:
    """`rows @ J` for one image (1, C, H, W), some rows at a time."""
    for part in rows.split(at_once):
        copies = image.expand(len(part), *image.shape[1:]).detach().clone().requires_grad_()
        z_hat = model.features(copies).flatten(1)
        if not z_hat.requires_grad:
            raise ConfigError("the encoder passes no gradient to its input, so it has no Jacobian to compute")
        (slope,) = torch.autograd.grad((z_hat * part).sum(), copies)
        yield slope.flatten(1).detach().float()
