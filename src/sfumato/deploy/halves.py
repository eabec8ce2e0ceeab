"""The two halves of a split model as they are exported: image to clean feature, and wire to logits.

Their rows are compared with one another, and what was exported with PyTorch, at every export.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.deploy.graph import company_gap, session_of
from sfumato.deploy.manifest import DECODER, ENCODER, UNSET, Manifest, QuantizationSpec, UnsetType
from sfumato.deploy.release import quantise
from sfumato.errors import BundleError, ConfigError
from sfumato.split import Channel, SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["DecoderHalf", "EncoderHalf", "Parity", "check_rows", "draw_inputs", "measure_parity"]

TOLERANCE = 1e-5
_ROWS_TOLERANCE = 1e-4  # of the largest value; float32 rounds rows of different batches apart by some 1e-6
_BATCHES = (1, 2, 5)


class EncoderHalf(nn.Module):
    """`(image, *uniforms) -> feature`: encoder, transforms and masks. Clip, noise and levels are the device's doing.

    Where masks follow, the clip before each of them is part of the network, as `Channel.release` has it.
    """

    takes_star = True

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        for transform in model.channel.stochastic_transforms:
            if not hasattr(transform, "with_uniform"):
                raise ConfigError(
                    f"{type(transform).__name__} draws random numbers inside the network, which a device cannot do "
                    "safely; give it a method with_uniform(feature, uniform) that takes them as an argument"
                )
        channel = copy.deepcopy(model.channel).float().cpu()
        self.edge = copy.deepcopy(model.edge).float().cpu()
        self.masks = nn.ModuleList(channel.stochastic_transforms)
        self.bound = Channel(clip_norm=channel.clip_norm if len(self.masks) else None, transforms=channel.transforms)
        self.clip = Channel(clip_norm=channel.clip_norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        image, *uniforms = inputs
        feature = self.bound.bound(self.edge(image))
        for index, (mask, uniform) in enumerate(zip(self.masks, uniforms, strict=True)):
            feature = mask.with_uniform(self.clip.bound(feature) if index else feature, uniform)  # type: ignore[operator]
        return feature


class DecoderHalf(nn.Module):
    """`feature -> logits`: level numbers to values, then the decoder; floats go straight to the decoder."""

    def __init__(self, model: SplitModel, levels: QuantizationSpec | None) -> None:
        super().__init__()
        self.cloud = copy.deepcopy(model.cloud).float().cpu()
        self.levels = levels

    def forward(self, feature: Tensor) -> Tensor:
        z = feature
        if self.levels is not None:
            z = feature.float() * self.levels.width + self.levels.low
        logits: Tensor = self.cloud(z)
        return logits


def draw_inputs(count: int, shape: Sequence[int], tokens: int | UnsetType, generator: torch.Generator) -> Tensor:
    """Random images (count, C, H, W) in [0, 1), or texts (count, L) of whole numbers below `tokens`."""
    if tokens is UNSET:
        return torch.rand((count, *shape), generator=generator)
    return torch.randint(tokens, (count, *shape), generator=generator)


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between PyTorch and ONNX Runtime, each divided by `max(1, largest value)`.

    Attributes:
        feature: of the clean feature.
        logits: of the logits, from equal features.
        images: on so many images, random ones included.
    """

    feature: float
    logits: float
    images: int


def check_rows(module: nn.Module, inputs: Sequence[Tensor], what: str) -> Tensor:
    """Compare a batch with its rows alone and with the batch in reverse order; give the batch's result.

    A device sends one image, a server puts strangers' requests together: a row must not depend on its company. A
    ConfigError says that they differ by more than 1e-4 of the largest value, or that the module fails on one row.
    """
    with evaluating(module):
        together: Tensor = module(*inputs)
        try:
            gap, largest = company_gap(_on_arrays(module), [part.numpy() for part in inputs])
        except Exception as error:  # whatever a network raises
            raise ConfigError(f"{what} cannot be computed for one image alone ({error}), as a device does") from error
    if not gap <= _ROWS_TOLERANCE * max(1e-3, largest):
        raise ConfigError(
            f"{what} of one image depends on the other images of its batch (it moves by {gap:.2g}), so it would differ "
            "on a device and between requests; look for an attention without batch_first=True, or a normalisation over "
            "the batch"
        )
    return together


def measure_parity(
    encoder: EncoderHalf,
    decoder: DecoderHalf,
    manifest: Manifest,
    encoder_bytes: bytes,
    decoder_bytes: bytes,
    images: Tensor | None,
    generator: torch.Generator,
) -> Parity:
    """Compare ONNX Runtime's batches with PyTorch's rows alone, on random images and on given ones (n, C, H, W).

    A BundleError says that a difference is above 1e-5, or that a result has another shape.
    """
    batches = [draw_inputs(size, manifest.input.shape, manifest.input.tokens, generator) for size in _BATCHES]
    if images is not None:
        batches += list(images.float().split(32))
    names = (manifest.input.name, *manifest.noise.uniforms)
    left, right = session_of(manifest, encoder_bytes, ENCODER), session_of(manifest, decoder_bytes, DECODER)
    worst = {"feature": 0.0, "logits": 0.0}
    with evaluating(encoder, decoder):
        for batch in batches:
            shape = (len(batch), *manifest.feature.shape)
            inputs = (batch, *(torch.rand(shape, generator=generator) for _ in manifest.noise.uniforms))
            noisy = (encoder(*inputs) + manifest.noise.std * torch.randn(shape, generator=generator)).numpy()
            wire = noisy if manifest.quantization is None else quantise(noisy, manifest.quantization)
            for name, half, session, keys, given in (
                ("feature", encoder, left, names, [part.numpy() for part in inputs]),
                ("logits", decoder, right, (manifest.feature.name,), [np.array(wire)]),
            ):
                exported = partial(_run, session, keys)
                gap, largest = company_gap(exported, given, _on_arrays(half))
                worst[name] = float(np.maximum(worst[name], gap / max(1.0, largest)))  # NaN stays
    for name, value in worst.items():
        if not value <= TOLERANCE:  # NaN is refused as well
            raise BundleError(
                f"the exported network differs from PyTorch's by {value:.2g} in the {name}, more than {TOLERANCE:g}; "
                "this network cannot be exported faithfully"
            )
    return Parity(worst["feature"], worst["logits"], sum(map(len, batches)))


def _run(session: Any, names: Sequence[str], *parts: Any) -> Any:
    return session.run(None, dict(zip(names, parts, strict=True)))[0]


def _on_arrays(module: nn.Module) -> Callable[..., Any]:
    return lambda *parts: module(*map(torch.tensor, parts)).numpy()
