"""Whether the exported networks compute what the trained ones do, row by row: measured at every export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.deploy.halves import DecoderHalf, EncoderHalf
from sfumato.deploy.manifest import Manifest
from sfumato.deploy.release import quantise
from sfumato.deploy.runtime import session_of
from sfumato.errors import BundleError, ConfigError

__all__ = ["Parity", "check_rows", "measure_parity"]

TOLERANCE = 1e-5
_ROWS_TOLERANCE = 1e-4  # of the largest value; float32 rounds rows of different batches apart by some 1e-6
_BATCHES = (1, 2, 5)


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

    A device sends one image, a server puts strangers' requests together: a row must not depend on its company.

    Args:
        module: in evaluation mode.
        inputs: what it takes, with a batch of at least 2.
        what: its result in words, for the message.

    Raises:
        ConfigError: they differ by more than 1e-4 of the largest value, or the module fails on one row.
    """
    with torch.no_grad():
        together: Tensor = module(*inputs)
        try:
            alone = torch.cat([module(*(part[row : row + 1] for part in inputs)) for row in range(len(inputs[0]))])
            turned = module(*(part.flip(0) for part in inputs)).flip(0)
        except Exception as error:  # whatever a network raises
            raise ConfigError(f"{what} cannot be computed for one image alone ({error}), as a device does") from error
    same = alone.shape == turned.shape == together.shape
    gap = max(float((other - together).abs().max()) for other in (alone, turned)) if same else float("nan")
    if not gap <= _ROWS_TOLERANCE * max(1e-3, float(together.abs().max())):
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
    """Run both on random images and on given ones, in batches of several sizes.

    Args:
        encoder: as exported.
        decoder: as exported.
        manifest: with shapes, levels and names.
        encoder_bytes: the ONNX file.
        decoder_bytes: the ONNX file.
        images: (n, C, H, W) in [0, 1], or none for random ones only.
        generator: of the random images and the noise.

    Raises:
        BundleError: a difference is above 1e-5, or a result has another shape.
    """
    left, right = session_of(encoder_bytes, "encoder.onnx"), session_of(decoder_bytes, "decoder.onnx")
    batches = [torch.rand((size, *manifest.input.shape), generator=generator) for size in _BATCHES]
    if images is not None:
        batches += list(images.float().split(32))
    worst_feature = worst_logits = 0.0
    with torch.no_grad():
        for batch in batches:
            shape = (len(batch), *manifest.feature.shape)
            uniforms = [torch.rand(shape, generator=generator) for _ in manifest.noise.uniforms]
            expected = encoder(batch, *uniforms)
            names = (manifest.input.name, *manifest.noise.uniforms)
            given = {name: part.numpy() for name, part in zip(names, (batch, *uniforms), strict=True)}
            feature = left.run([manifest.feature.name], given)[0]
            worst_feature = max(worst_feature, _difference(feature, expected.numpy(), "feature"))
            noisy = (expected + manifest.noise.std * torch.randn(shape, generator=generator)).numpy()
            wire = noisy if manifest.quantization is None else quantise(noisy, manifest.quantization)
            answer = right.run([manifest.output.name], {manifest.feature.name: wire})[0]
            wanted = decoder(torch.from_numpy(np.array(wire))).numpy()
            worst_logits = max(worst_logits, _difference(answer, wanted, "logits"))
    for name, value in (("feature", worst_feature), ("logits", worst_logits)):
        if not value <= TOLERANCE:  # NaN is refused as well
            raise BundleError(
                f"the exported network differs from PyTorch's by {value:.2g} in the {name}, more than {TOLERANCE:g}; "
                "this network cannot be exported faithfully"
            )
    return Parity(worst_feature, worst_logits, sum(len(batch) for batch in batches))


def _difference(found: Any, wanted: Any, name: str) -> float:
    if found.shape != wanted.shape:
        raise BundleError(f"the exported network gives {name} {found.shape} where PyTorch gives {wanted.shape}")
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))
