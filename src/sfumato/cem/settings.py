"""What CEM accepts as settings, features and labels, and what it says of the rest."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture import Covariance, check_covariance
from sfumato.torch_utils import free_to_look

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


Scaling = Literal["per_dimension", "literal", "as_published"]
Update = Literal["epoch", "running", "steps"]
Fit = Literal["kmeans", "em"]


class Settings(NamedTuple):
    """What is left open is filled in: `groups` of `clusters_per_class` clusters each."""

    groups: int
    clusters_per_class: int
    covariance: Covariance
    class_conditional: bool


def check_settings(
    num_classes: int | None,
    clusters_per_class: int | None,
    clusters: int | None,
    *,
    noise_std: float,
    covariance: Covariance | None,
    scaling: Scaling,
    update: Update,
    fit: Fit,
    class_conditional: bool,
) -> Settings:
    """The settings with their defaults filled in."""
    _check_choice("scaling", scaling, ("per_dimension", "literal", "as_published"))
    _check_choice("update", update, ("epoch", "running", "steps"))
    _check_choice("fit", fit, ("kmeans", "em"))
    if clusters_per_class is None:
        clusters_per_class = 1 if update == "steps" else 3
    if covariance is None:
        covariance = "tied" if update == "steps" else "full"
    check_covariance(covariance)
    for name, value, instead in (("update", update, "running"), ("scaling", scaling, "literal")):
        if value == instead and (covariance == "tied" or update == "steps"):
            raise ConfigError(
                f"{name}={value!r} is Eq. 5 to 7 as printed, one covariance per cluster and N samples in all; give "
                "covariance='full' and update='epoch' or 'running', or the default scaling"
            )
    class_conditional = class_conditional and fit == "kmeans"
    if not (math.isfinite(noise_std) and noise_std > 0):
        raise ConfigError(
            f"noise_std is {noise_std}, but without noise the information in a feature is infinite and CEM has nothing "
            "to minimise; give a positive standard deviation such as 0.025"
        )
    if num_classes is None:
        if clusters is None or clusters < 1:
            raise ConfigError(
                f"clusters is {clusters}, but without classes only it says how many components the mixture has; give "
                "at least 1, such as clusters=10"
            )
        groups, clusters_per_class, class_conditional = 1, clusters, False
    elif clusters is not None:
        raise ConfigError("clusters is for targets without classes; give clusters_per_class, or num_classes=None")
    elif num_classes < 1 or clusters_per_class < 1:
        raise ConfigError(
            f"num_classes ({num_classes}) and clusters_per_class ({clusters_per_class}) must be at least 1"
        )
    else:
        groups = num_classes
    if scaling == "as_published" and (covariance != "spherical" or update != "epoch" or not class_conditional):
        raise ConfigError(
            "scaling='as_published' is defined for one variance per cluster inside each class; give "
            "covariance='spherical' and update='epoch', or build it with CEM.as_published(...)"
        )
    if fit == "em" and (covariance != "full" or update == "steps"):
        raise ConfigError("fit='em' is Algorithm 1 as printed; give update='running' and covariance='full'")
    return Settings(groups, clusters_per_class, covariance, class_conditional)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}")
