"""Is this an encoder that can be audited at all? One sentence for each way in which it is not."""

from typing import Any

import torch
from torch import Tensor

from sfumato.audit.subject import Subject
from sfumato.errors import FeatureError, first_line

__all__ = ["check_subject", "passes_gradients"]

_TOLERANCE = 1e-4  # of the feature's scale; kernels for other batch sizes round differently


@torch.no_grad()
def check_subject(subject: Subject, x: Tensor) -> tuple[int, ...]:
    """Check the encoder on a few images, and give the shape of its feature.

    Args:
        subject: in evaluation mode.
        x: (n, C, H, W) images in [0, 1], n at least 3.

    Raises:
        FeatureError: the encoder does not take these images, gives several tensors, NaN, a shape that is not the same
            in every call, another feature for the same image, or one that depends on the other images of a batch.
    """
    first = _feature(subject, x)
    again = _feature(subject, x)
    if first.shape != again.shape:
        raise FeatureError(
            f"the encoder gave features {tuple(first.shape)} and then {tuple(again.shape)} for the same images; it has "
            "to give one shape"
        )
    scale = float(first.abs().mean()) + 1e-12
    if float((first - again).abs().max()) > _TOLERANCE * scale:
        raise FeatureError(
            "the encoder is random: the same images gave two different features; take noise and dropout out of it, and "
            "describe the noise on the wire with --noise-std"
        )
    for count, words in ((2, "two images"), (1, "one image")):
        part = _feature(subject, x[:count])
        if part.shape[1:] != first.shape[1:]:
            raise FeatureError(
                f"the encoder gives features of shape {tuple(part.shape[1:])} for {words} and {tuple(first.shape[1:])} "
                f"for {len(x)}; an image's feature has to have one shape"
            )
        if float((first[:count] - part).abs().max()) > 10 * _TOLERANCE * scale:
            raise FeatureError(
                "an image's feature depends on the other images of its batch, as with batch normalisation in training "
                "mode; export the encoder in evaluation mode"
            )
    return tuple(first.shape[1:])


def passes_gradients(subject: Subject, x: Tensor) -> bool:
    """Whether the feature can be differentiated with respect to the image."""
    image = x[:1].detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            z_hat = subject.model.features(image)
            if not z_hat.requires_grad:
                return False
            return torch.autograd.grad(z_hat.sum(), image, allow_unused=True)[0] is not None
    except RuntimeError:
        return False


def _feature(subject: Subject, x: Tensor) -> Tensor:
    try:
        made: Any = subject.model.edge(x)
    except Exception as error:  # the user's network, or a graph of it, on images that do not fit
        raise FeatureError(
            f"the encoder does not take images of shape {tuple(x.shape[1:])} ({first_line(error)}); "
            + (
                f"the audit feeds {subject.described.sentence()}; describe the input with --input, or check --size"
                if subject.described is not None
                else "check --data and --size"
            )
        ) from error
    if isinstance(made, tuple | list | dict):
        raise FeatureError(
            f"the encoder gives {len(made)} tensors, and one feature crosses the wire; export an encoder that "
            "concatenates them, or only the one that leaves the device"
        )
    z_hat = subject.model.channel.bound(made)
    if len(z_hat) != len(x):
        raise FeatureError(f"the encoder gave {len(z_hat)} features for {len(x)} images; it has to give one per image")
    if not bool(torch.isfinite(z_hat).all()):
        raise FeatureError("the encoder gives NaN or infinite features; check its weights and how images are scaled")
    return z_hat
