"""What the functions of this room accept, brought to one dtype and device, and every check of it."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError

ArrayLike: TypeAlias = Tensor | np.ndarray | Sequence[Any] | float
Family: TypeAlias = Literal["full", "diagonal", "spherical"]

_AXES_OF_FAMILY = {"spherical": 0, "diagonal": 1, "full": 2}
_FAMILY_OF_AXES: dict[int, Family] = {0: "spherical", 1: "diagonal", 2: "full"}
# Covariances computed in float32 are symmetric to about 1e-6; a matrix that is not one misses by far more.
_SYMMETRY_TOLERANCE = 1e-4
_WEIGHT_SUM_TOLERANCE = 1e-3


def as_tensors(**named: ArrayLike) -> tuple[Tensor, ...]:
    """Tensors of one floating dtype on one device, in the order given; gradients flow through.

    Tensors and arrays decide the dtype (the widest of those with axes, at least float32: half precision is
    computed in float32); Python numbers and lists follow, and are float64 when there is nothing else.
    """
    tensors = {name: _as_tensor(name, value) for name, value in named.items()}
    typed = [
        tensor for name, tensor in tensors.items() if tensor.is_floating_point() and not _of_python_numbers(named[name])
    ]
    # A number without axes follows those that have some, as in PyTorch itself.
    deciding = [tensor for tensor in typed if tensor.ndim] or typed
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in deciding), torch.float32)
    if not deciding:
        dtype = torch.float64
    given = [tensor for name, tensor in tensors.items() if not _of_host(named[name])]
    devices = {tensor.device for tensor in given if tensor.ndim} or {tensor.device for tensor in given[:1]}
    if len(devices) > 1:
        places = ", ".join(sorted(map(str, devices)))
        raise FeatureError(f"{' and '.join(named)} live on {places}; move them to one device with .to(device)")
    device = next(iter(devices), torch.device("cpu"))
    return tuple(tensor.to(device=device, dtype=dtype) for tensor in tensors.values())


def _as_tensor(name: str, value: ArrayLike) -> Tensor:
    try:
        if isinstance(value, Tensor):
            tensor = value
        elif isinstance(value, np.ndarray | np.generic):
            tensor = torch.from_numpy(np.array(value))
        elif _of_tensors(value):
            tensor = torch.stack([torch.as_tensor(part) for part in value])
        else:
            tensor = torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeatureError(f"{name} is not numeric ({error}); pass a number, an array or a tensor") from error
    if tensor.is_complex():
        raise FeatureError(f"{name} is complex; pass real numbers, for example its .real part")
    return tensor


def _of_tensors(value: ArrayLike) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value)


def _of_host(value: ArrayLike) -> bool:
    return not isinstance(value, Tensor) and not _of_tensors(value)


def _of_python_numbers(value: ArrayLike) -> bool:
    return _of_host(value) and not isinstance(value, np.ndarray | np.generic)


def require_dim(dim: int, name: str = "dim") -> int:
    """The dimension as a positive int, or ConfigError."""
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
        raise ConfigError(f"{name} is {dim!r}; pass the number of dimensions as a positive integer")
    return int(dim)


def require_finite(name: str, tensor: Tensor) -> None:
    """FeatureError when a value is NaN or infinite."""
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise FeatureError(f"{name} holds NaN or infinite values; find the step that produced them first")


def broadcast(**named: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the one shape that they share, or FeatureError."""
    try:
        return tuple(torch.broadcast_tensors(*named.values()))
    except RuntimeError as error:
        shapes = " and ".join(f"{name} {tuple(value.shape)}" for name, value in named.items())
        raise FeatureError(f"{shapes} do not broadcast; pass one value of each, or equal shapes") from error


def means_dim(weights: Tensor, means: Tensor) -> int:
    """D of the means (..., k, D) that belong to weights (..., k), or FeatureError."""
    if means.ndim != weights.ndim + 1 or means.shape[:-1] != weights.shape:
        raise FeatureError(
            f"weights {tuple(weights.shape)} and means {tuple(means.shape)} do not match; "
            "pass weights (k,) and means (k, D), features flattened row-major"
        )
    return means.shape[-1]


def covariance_form(
    covariances: Tensor, family: Family, dim: int | None, name: str = "covariances"
) -> tuple[Tensor, bool]:
    """Checked covariances as (..., D) variances or symmetric (..., D, D) matrices, and whether the latter."""
    if family not in _AXES_OF_FAMILY:
        raise ConfigError(f"family is {family!r}; choose 'full', 'diagonal' or 'spherical'")
    shape = tuple(covariances.shape)
    if covariances.ndim < _AXES_OF_FAMILY[family] or (family == "full" and shape[-1] != shape[-2]):
        wanted = {"full": "(..., D, D)", "diagonal": "(..., D)", "spherical": "(...)"}[family]
        raise FeatureError(
            f"{name} of shape {shape} cannot be read as {wanted}, the {family} family; reshape, or name another family"
        )
    if family == "spherical" and dim is None:
        raise ConfigError(f"the dimension cannot be told from spherical {name}; pass dim=D by keyword")
    size = require_dim(shape[-1] if dim is None else dim)
    if family != "spherical" and shape[-1] != size:
        raise ConfigError(f"dim={dim} contradicts {name} of shape {shape}; leave dim out or pass {shape[-1]}")
    require_finite(name, covariances)
    if family == "full":
        return _symmetric(covariances, name), True
    if bool((covariances.detach() < 0).any()):
        raise FeatureError(f"{name} must not hold negative variances; floor them at 0 with .clamp(min=0)")
    return (covariances if family == "diagonal" else covariances[..., None].expand(*shape, size)), False


def _symmetric(matrices: Tensor, name: str) -> Tensor:
    """The symmetric part, so that gradients are symmetric too, after checking that it is all there is."""
    values = matrices.detach()
    scale = float(values.abs().amax()) if values.numel() else 0.0
    if values.numel() and float((values - values.mT).abs().amax()) > _SYMMETRY_TOLERANCE * scale:
        raise FeatureError(f"{name} must be symmetric; if only rounding is in the way, pass (S + S.mT) / 2")
    if bool((values.diagonal(dim1=-2, dim2=-1) < -_SYMMETRY_TOLERANCE * scale).any()):
        raise FeatureError(f"{name} must not hold negative variances; pass positive semidefinite matrices")
    return (matrices + matrices.mT) / 2


def mixture_form(weights: Tensor, covariances: Tensor, dim: int | None) -> tuple[Tensor, Tensor, Tensor, bool]:
    """`(occupied, weights, covariances, full)` of a mixture whose family follows from the number of axes.

    Components of weight 0 come back with covariance 0 and cut off from the gradient, whatever they held.
    """
    if weights.ndim < 1 or weights.shape[-1] < 1:
        raise FeatureError(f"weights have shape {tuple(weights.shape)}; pass (k,), one weight per component")
    require_finite("weights", weights)
    values = weights.detach()
    if bool((values < 0).any()):
        raise FeatureError("weights hold negative values; pass the share of samples in each component")
    if bool(((values.sum(-1) - 1).abs() > _WEIGHT_SUM_TOLERANCE).any()):
        raise FeatureError("weights do not sum to 1; divide them by their sum")
    family = _FAMILY_OF_AXES.get(covariances.ndim - weights.ndim)
    if family is None or covariances.shape[: weights.ndim] != weights.shape:
        raise FeatureError(
            f"weights {tuple(weights.shape)} and covariances {tuple(covariances.shape)} do not match; "
            "pass weights (k,) with covariances (k, D, D) full, (k, D) diagonal or (k,) spherical"
        )
    # What an absent component holds, NaN included, is replaced before anything looks at it.
    occupied = values > 0
    where = occupied.reshape(occupied.shape + (1,) * (covariances.ndim - weights.ndim))
    form, full = covariance_form(torch.where(where, covariances, torch.zeros_like(covariances)), family, dim)
    return occupied, weights, form, full


def noise_form(noise: Tensor, dim: int, *, allow_zero: bool = False) -> Tensor:
    """The checked noise covariance: 0-d a common variance, (D,) variances, (D, D) a symmetric matrix."""
    shape = tuple(noise.shape)
    if shape not in {(), (dim,), (dim, dim)}:
        raise ConfigError(
            f"noise_covariance has shape {shape} for features of {dim} dimensions; "
            f"pass a variance, ({dim},) variances or a ({dim}, {dim}) matrix"
        )
    if not bool(torch.isfinite(noise.detach()).all()):
        raise ConfigError("noise_covariance holds NaN or infinite values; pass the noise variance sigma ** 2")
    if len(shape) == 2:
        try:
            noise = _symmetric(noise, "noise_covariance")
        except FeatureError as error:
            raise ConfigError(str(error)) from error
    lowest = float((noise.diagonal() if len(shape) == 2 else noise).detach().min())
    if lowest < 0:
        raise ConfigError("noise_covariance holds a negative variance; pass sigma ** 2 of the noise")
    if lowest == 0 and not allow_zero:
        raise ConfigError(
            "noise_covariance holds a variance of 0: without noise in every dimension the information is not "
            "bounded; pass a positive variance sigma ** 2"
        )
    return noise
