"""Whether the exported networks compute what the trained ones do: measured at every export, on the bytes written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.deploy.halves import DecoderHalf, EncoderHalf
from sfumato.deploy.manifest import Manifest
from sfumato.deploy.quantise import quantise
from sfumato.deploy.runtime import session_of
from sfumato.errors import BundleError

__all__ = ["Parity", "measure_parity"]

TOLERANCE = 1e-5
_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between PyTorch and ONNX Runtime, each divided by `max(1, largest value)`.

    Attributes:
        feature: of the noisy feature before the levels.
        logits: of the logits, from equal features.
        images: on so many images, random ones included.
    """

    feature: float
    logits: float
    images: int


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
            draws = [torch.randn((len(batch), *manifest.feature.shape), generator=generator)]
            draws += [torch.rand(draws[0].shape, generator=generator) for _ in manifest.noise.uniforms]
            expected = encoder(batch, *draws).numpy()
            names = (manifest.input.name, "noise", *manifest.noise.uniforms)
            given = {name: part.numpy() for name, part in zip(names, (batch, *draws), strict=True)}
            feature = left.run([manifest.feature.name], given)[0]
            worst_feature = max(worst_feature, _difference(feature, expected, "feature"))
            wire = expected if manifest.quantization is None else quantise(expected, manifest.quantization)
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
