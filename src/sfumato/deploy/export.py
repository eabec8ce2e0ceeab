"""From a trained split model to a bundle: two ONNX networks, the manifest, and what serving engines need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sfumato.deploy.bundle import replace_folder
from sfumato.deploy.engines import write_engines
from sfumato.deploy.graph import check_graph
from sfumato.deploy.halves import DecoderHalf, EncoderHalf, check_exportable, ends_in_sigmoid
from sfumato.deploy.manifest import (
    DECODER,
    ENCODER,
    NAME,
    FeatureSpec,
    InputSpec,
    Manifest,
    NoiseSpec,
    OutputSpec,
    QuantizationSpec,
    file_digest,
)
from sfumato.deploy.onnxfile import to_onnx
from sfumato.deploy.parity import Parity, measure_parity
from sfumato.deploy.pte import PTE, pte_parity, to_pte
from sfumato.deploy.signing import sign
from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["ExportConfig", "Exported", "export_bundle"]

_SEED = 20


@dataclass(frozen=True)
class ExportConfig:
    """How a bundle is made.

    Attributes:
        name: of the served model: letters, digits and `._-`.
        version: of the served model, a whole number from 1.
        noise: `memoised` repeats the noise when one device meets the same input again, so that asking again gains
            nothing; `fresh` draws anew for every query, with a budget for each input.
        quantize_bits: bits per value on the wire, 1 to 16; none takes what the run was trained with.
        reveal: what a server answers: `logits`, `top_k` or `label`; the less, the harder the model is to copy.
        top_k: how many classes `top_k` reveals.
        resize: `bilinear` stretches images of other sizes as training did, `exact` refuses them.
        executorch: write `encoder.pte` for ExecuTorch (XNNPACK) as well.
        without_noise: export a run that was trained without noise: nothing protects what it sends.
        unbounded: export an encoder whose feature nothing bounds, so that it may outgrow the noise.
    """

    name: str
    version: int = 1
    noise: Literal["memoised", "fresh"] = "memoised"
    quantize_bits: int | None = None
    reveal: Literal["logits", "top_k", "label"] = "logits"
    top_k: int | None = None
    resize: Literal["bilinear", "exact"] = "bilinear"
    executorch: bool = False
    without_noise: bool = False
    unbounded: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"the name {self.name!r} is not made of letters, digits and ._-; give one that is (--name)"
            )
        if not 1 <= self.version < 10**9:
            raise ConfigError(f"version is {self.version}; give a whole number from 1")
        if (self.top_k is None) == (self.reveal == "top_k") or (self.top_k or 1) < 1:
            raise ConfigError(
                f"reveal is {self.reveal} and top_k is {self.top_k}; give the number of classes with top_k, and only "
                "with it, such as --reveal top_k --top-k 3"
            )


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        parity: how far ONNX Runtime and PyTorch differ on it.
        pte_parity: how far ExecuTorch and PyTorch differ in the feature, or None where it was not asked for.
        signed_by: fingerprint of the key that signed it, or None.
    """

    folder: Path
    manifest: Manifest
    parity: Parity
    signed_by: str | None
    pte_parity: float | None = None


def export_bundle(
    model: SplitModel,
    folder: Path,
    config: ExportConfig,
    *,
    classes: Sequence[str],
    image_shape: Sequence[int],
    images: Tensor | None = None,
    training: dict[str, Any] | None = None,
    audit: dict[str, Any] | None = None,
    key: "Ed25519PrivateKey | None" = None,
) -> Exported:
    """Write a bundle for a split model, and check that it computes what the model does.

    The encoder takes the image in [0, 1] and standard normal noise, and gives the noisy feature; the device rounds it
    to the levels. The decoder turns level numbers back into values itself. A random mask of a defence becomes one more
    input. Neither file can draw a random number.

    Args:
        model: trained; it stays as it is.
        folder: the bundle; an older bundle there is replaced whole, anything else is left alone.
        config: names, noise, levels, answer.
        classes: their names, in the order of the logits.
        image_shape: (C, H, W).
        images: (n, C, H, W) in [0, 1], real ones for the comparison with PyTorch; random ones are always compared.
        training: provenance, plain values.
        audit: the audit's headline, plain values.
        key: signs the manifest.

    Raises:
        ConfigError: the model cannot be exported safely, the settings contradict one another, or a package is missing.
        BundleError: what was exported differs from PyTorch's by more than 1e-5, or could draw random numbers.
        StorageError: the folder cannot be written.
    """
    generator = torch.Generator().manual_seed(_SEED)
    shape = tuple(int(size) for size in image_shape)
    example = torch.rand((2, *shape), generator=generator)
    check_exportable(model, example, allow_no_noise=config.without_noise, allow_unbounded=config.unbounded)
    channel = _channel(model, config, example)
    split = SplitModel(model.edge, channel, model.cloud)
    levels = None
    if channel.quantize_bits is not None:
        levels = QuantizationSpec(channel.quantize_bits, *channel.quantization_range)
    encoder, decoder = EncoderHalf(split).cpu().eval(), DecoderHalf(split, levels).cpu().eval()
    with torch.no_grad():
        feature_shape = tuple(encoder.channel.bound(encoder.edge(example)).shape[1:])
    datatype: Literal["FP32", "UINT8", "UINT16"] = "FP32"
    if levels is not None:
        datatype = "UINT8" if levels.bits <= 8 else "UINT16"
    uniforms = tuple(f"uniform{index}" for index, _ in enumerate(channel.stochastic_transforms))
    draft = Manifest(
        name=config.name,
        version=str(config.version),
        classes=tuple(classes),
        input=InputSpec("image", shape, (0.0, 1.0), config.resize),
        feature=FeatureSpec("feature", feature_shape, datatype),
        clip_norm=channel.clip_norm,
        noise=NoiseSpec(channel.noise_std, config.noise, uniforms),
        quantization=levels,
        output=OutputSpec("logits", (len(classes),), config.reveal, config.top_k),
        files={ENCODER: "0" * 64, DECODER: "0" * 64},
        training=training or {},
        audit=audit,
    )
    Manifest.from_dict(draft.as_dict())  # what contradicts the model (top_k, the classes) is found before the work
    draws = [torch.rand((2, *feature_shape), generator=generator) for _ in range(1 + len(uniforms))]
    encoder_bytes = to_onnx(encoder, (example, *draws), ("image", "noise", *uniforms), "feature")
    check_graph(encoder_bytes, ENCODER)
    wire = torch.zeros((2, *feature_shape), dtype=_TORCH_TYPES[datatype])
    decoder_bytes = to_onnx(decoder, (wire,), ("feature",), "logits")
    check_graph(decoder_bytes, DECODER)
    parity = measure_parity(encoder, decoder, draft, encoder_bytes, decoder_bytes, images, generator)
    files = {ENCODER: encoder_bytes, DECODER: decoder_bytes}
    pte = None
    if config.executorch:
        files[PTE] = to_pte(encoder, (example, *draws))
        pte = pte_parity(files[PTE], encoder, [(example, *draws)])
    signed_by = None
    with replace_folder(folder) as fresh:
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        manifest = replace(draft, files={name: file_digest(fresh / name) for name in files})
        manifest.save(fresh)
        write_engines(manifest, fresh)
        if key is not None:
            signed_by = sign(fresh, manifest.canonical_bytes(), key)
    return Exported(folder, Manifest.load(folder), parity, signed_by, pte)


_TORCH_TYPES = {"FP32": torch.float32, "UINT8": torch.uint8, "UINT16": torch.uint16}


def _channel(model: SplitModel, config: ExportConfig, example: Tensor) -> Channel:
    """The channel that is deployed: the trained one, with levels where the export asks for them."""
    channel = model.channel
    if config.quantize_bits is None:
        return channel
    if channel.quantize_bits is None and not ends_in_sigmoid(model.edge, example):
        raise ConfigError(
            "the range of this feature is unknown, so it cannot be quantised after training; train with --quantize-bits"
        )
    return Channel(
        noise_std=channel.noise_std,
        clip_norm=channel.clip_norm,
        quantize_bits=config.quantize_bits,
        low=channel.low,
        high=channel.high,
        transforms=channel.transforms,
    )
