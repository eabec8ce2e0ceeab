"""What CEM accepts as features and labels, and what it says of the rest."""

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.modes import free_to_look

DIVERGED = "the features contain NaN or infinity; the training has diverged: lower the learning rate or lambda"

_NO_CLASSES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.complex64}


def flatten(features: Tensor, dim: int | None) -> Tensor:
    """(N, ...) -> (N, D), with D = `dim` where the mixture has that many already."""
    if features.ndim < 2 or not features.is_floating_point():
        raise FeatureError(
            f"features must be a floating-point tensor (N, ...) of at least two dimensions, got "
            f"{features.dtype} {tuple(features.shape)}"
        )
    flat = features.flatten(1)
    if dim is not None and flat.shape[1] != dim:
        raise FeatureError(
            f"features have {flat.shape[1]} dimensions, but {dim} at the last refresh; use a new CEM object for "
            "another cut or model"
        )
    return flat


def check_labels(labels: Tensor | None, flat: Tensor, *, wanted: bool) -> Tensor | None:
    """The classes as int64, None where they are not `wanted`."""
    count = len(flat)
    if not wanted:
        if isinstance(labels, Tensor) and (labels.ndim == 0 or len(labels) != count):
            raise FeatureError(f"labels of shape {tuple(labels.shape)} are not one for each of {count} features")
        return None
    if labels is None:
        raise FeatureError("class-conditional clusters need labels; pass them or set class_conditional=False")
    if not isinstance(labels, Tensor):
        raise FeatureError(f"labels are a {type(labels).__name__}; give a tensor ({count},) of class numbers")
    if labels.dtype in _NO_CLASSES or (labels.ndim == 2 and len(labels) == count and count):
        raise FeatureError(
            f"labels are {labels.dtype} {tuple(labels.shape)}, not class numbers ({count},) of an integer type; pass "
            "labels.argmax(1) of one-hot labels, and for regression or several labels per sample build "
            "CEM(num_classes=None, clusters=...)"
        )
    if labels.ndim != 1 or len(labels) != count:
        raise FeatureError(f"labels must have shape ({count},) like the features, got {tuple(labels.shape)}")
    if labels.device != flat.device:
        raise FeatureError(f"labels are on {labels.device}, the features on {flat.device}; move them together")
    return labels.long()


def check_finite(direction: Tensor) -> None:
    """On the CPU only: elsewhere the check would wait for the device in every step."""
    if free_to_look(direction) and not torch.isfinite(direction).all():
        raise FeatureError(DIVERGED)


def check_graph(flat: Tensor) -> None:
    """A penalty on features without a graph would train nothing, and nobody would notice."""
    if not flat.requires_grad:
        raise FeatureError(
            "the features have no graph, so the penalty cannot reach the encoder: pass z_hat as the encoder gave it, "
            "not detached, from layers that are not frozen (or call .eval() on the CEM to look at its value only)"
        )
