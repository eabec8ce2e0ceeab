"""From a trained split model to a bundle: two ONNX networks, the manifest, and what serving engines need."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch
from torch import Tensor

from sfumato.deploy.edge import check_noise
from sfumato.deploy.engines import write_engines
from sfumato.deploy.files import replace_folder
from sfumato.deploy.graph import check_graph
from sfumato.deploy.halves import (
    DecoderHalf,
    EncoderHalf,
    Parity,
    check_rows,
    draw_inputs,
    measure_parity,
    output_range,
    to_onnx,
)
from sfumato.deploy.manifest import (
    DECODER,
    ENCODER,
    MANIFEST,
    NAME,
    NOISE,
    UNSET,
    Manifest,
    QuantizationSpec,
    datatype_of,
)
from sfumato.deploy.signing import sign
from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.files import sha256_of
from sfumato.model_card import model_card
from sfumato.settings import check_settings
from sfumato.split import Channel, SplitModel
from sfumato.torch_utils import evaluating

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["ExportConfig", "Exported", "export_bundle", "wire_bits"]

_SEED = 20
_BITS = 8
_ROWS = 4


@dataclass(frozen=True)
class ExportConfig:
    """How a bundle is made.

    Attributes:
        name: Name of the served model: letters, digits and `._-`.
        version: Version of the served model, a whole number from 1.
        quantize_bits: Bits per value on the wire, 1 to 16. If not given, what the run was trained with, or 8.
        floats: Send floats instead of levels. They are rounded to a grid far finer than the noise.
        reveal: What a server answers. The less, the harder the model is to copy.
        top_k: How many classes `top_k` reveals.
        resize: What becomes of images of other sizes. `bilinear` stretches them as training did, `exact`
            refuses them.
        without_noise: Export a run that was trained without noise. Nothing protects what it sends.
        unbounded: Export an encoder whose feature nothing bounds. It may then outgrow the noise.
    """

    name: str
    version: int = 1
    quantize_bits: int | None = None
    floats: bool = False
    reveal: Literal["logits", "top_k", "label"] = "logits"
    top_k: int | None = None
    resize: Literal["bilinear", "exact"] = "bilinear"
    without_noise: bool = False
    unbounded: bool = False

    def __post_init__(self) -> None:
        check_settings(
            self, least={"version": 1, "quantize_bits": 1, "top_k": 1}, below={"version": 10**9, "quantize_bits": 17}
        )
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"the name {self.name!r} is not made of letters, digits and ._-; give one that is (--name)"
            )
        if (self.top_k is None) == (self.reveal == "top_k"):
            raise ConfigError(
                f"reveal is {self.reveal} and top_k is {self.top_k}; give the number of classes with top_k, and only "
                "with it, such as --reveal top_k --top-k 3"
            )
        if self.floats and self.quantize_bits is not None:
            raise ConfigError("floats and quantize_bits exclude each other; give one of them")


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        parity: how far ONNX Runtime and PyTorch differ on it.
        signed_by: fingerprint of the key that signed it, or None.
    """

    folder: Path
    manifest: Manifest
    parity: Parity
    signed_by: str | None


def export_bundle(
    model: SplitModel,
    folder: Path,
    config: ExportConfig,
    *,
    classes: Sequence[str],
    image_shape: Sequence[int],
    tokens: int | None = None,
    images: Tensor | None = None,
    training: dict[str, Any] | None = None,
    audit: dict[str, Any] | None = None,
    key: "Ed25519PrivateKey | None" = None,
) -> Exported:
    """Write a bundle for a split model, and check that it computes what the model does.

    The encoder takes the image in [0, 1] and gives the clean feature; the device clips it, adds the noise and rounds to
    the levels. The decoder turns level numbers back into values itself. A random mask of a defence becomes one more
    input. Neither file can draw a random number.

    Args:
        model: trained; it stays as it is.
        folder: the bundle; an older bundle there is replaced whole, anything else is left alone.
        config: names, levels, answer.
        classes: their names, in the order of the logits, no two alike.
        image_shape: (C, H, W); of a model of texts (L,).
        tokens: of a model of texts, how many tokens there are: its encoder takes whole numbers below it, int64.
        images: (n, C, H, W) in [0, 1], real ones for the comparison with PyTorch; random ones are always compared.
        training: provenance, plain values.
        audit: the audit's headline, as `audited.audit_headline` gives it.
        key: signs the manifest.

    Raises:
        ConfigError: the model cannot be exported safely, the settings contradict one another, or a package is missing.
        BundleError: what was exported differs from PyTorch's by more than 1e-5, or could draw random numbers.
        StorageError: the folder cannot be written.
    """
    channel = model.channel
    if channel.noise_std == 0 and not config.without_noise:
        raise ConfigError(
            "the model adds no noise to what leaves the device, so nothing protects it; train with --noise-std above "
            "0, or allow it by name (--without-noise)"
        )
    if channel.noise.singular and not config.without_noise:
        warnings.warn(
            "the noise leaves directions without noise: there the feature is sent as it is, and nothing is certified; "
            "add a little white noise",
            SfumatoWarning,
            stacklevel=2,
        )
    encoder = EncoderHalf(model)  # copies: the caller's model keeps its modes and statistics
    generator = torch.Generator().manual_seed(_SEED)
    shape = tuple(int(size) for size in image_shape)
    example = draw_inputs(_ROWS, shape, UNSET if tokens is None else tokens, generator)
    with evaluating(encoder):
        feature_shape = tuple(encoder.bound.bound(encoder.edge(example)).shape[1:])
    uniforms = tuple(f"uniform{index}" for index, _ in enumerate(encoder.masks))
    draws = [torch.rand((_ROWS, *feature_shape), generator=generator) for _ in uniforms]
    clean = check_rows(encoder, (example, *draws), "the encoder's feature")
    noisy = clean + channel.noise_std * torch.randn(clean.shape, generator=generator)
    check_rows(DecoderHalf(model, None), (noisy,), "the decoder's answer")
    numbers = None if channel.noise.white else channel.noise.array(math.prod(feature_shape))
    draft = _manifest(
        name=config.name,
        version=str(config.version),
        classes=tuple(classes),
        input={"name": "image", "shape": shape, "resize": config.resize}
        if tokens is None
        else {"name": "ids", "shape": shape, "resize": "exact", "tokens": tokens},
        feature={"name": "feature", "shape": feature_shape, "datatype": "FP32"},
        clip_norm=channel.clip_norm,
        noise={"std": channel.noise_std, "uniforms": uniforms}
        | ({} if numbers is None else {"rank": channel.noise.rank}),
        quantization=None,
        output={"name": "logits", "shape": (len(classes),), "reveal": config.reveal, "top_k": config.top_k},
        files={ENCODER: "0" * 64, DECODER: "0" * 64} | ({} if numbers is None else {NOISE: channel.noise.digest}),
        sizes={ENCODER: 0, DECODER: 0} | ({} if numbers is None else {NOISE: numbers.nbytes}),
        training=training or {},
        audit=audit,
    )
    check_noise(draft, numbers, allow_no_noise=config.without_noise)
    encoder_bytes = to_onnx(encoder, (example, *draws), (draft.input.name, *uniforms), "feature")
    check_graph(encoder_bytes, ENCODER)  # says more of a forbidden network than any later step
    limits = output_range(encoder_bytes)
    levels = _levels(channel, config, limits)
    decoder = DecoderHalf(model, levels)
    datatype = datatype_of(levels)
    feature = msgspec.structs.replace(draft.feature, datatype=datatype, range=limits)
    draft = msgspec.structs.replace(draft, feature=feature, quantization=levels)
    wire = torch.zeros((_ROWS, *feature_shape), dtype=_TORCH_TYPES[datatype])
    decoder_bytes = to_onnx(decoder, (wire,), ("feature",), "logits")
    parity = measure_parity(encoder, decoder, draft, encoder_bytes, decoder_bytes, images, generator)
    signed_by = None
    with replace_folder(folder, MANIFEST) as fresh:
        for name, data in ((ENCODER, encoder_bytes), (DECODER, decoder_bytes)):
            (fresh / name).write_bytes(data)
        if numbers is not None:
            (fresh / NOISE).write_bytes(numbers.tobytes())
        write_engines(draft, fresh)
        card = model_card(config.name, channel={"noise_std": channel.noise_std, "clip_norm": channel.clip_norm,
                          "quantize_bits": wire_bits(channel, config)}, input_shape=shape, classes=classes,
                          training=training or {}, audit=audit)  # fmt: skip
        (fresh / "README.md").write_text(card, encoding="utf-8")
        paths = {path.relative_to(fresh).as_posix(): path for path in sorted(fresh.rglob("*")) if path.is_file()}
        manifest = msgspec.structs.replace(
            draft,
            files={name: sha256_of(path) for name, path in paths.items()},
            sizes={name: path.stat().st_size for name, path in paths.items()},
        )
        manifest.save(fresh)
        if key is not None:
            signed_by = sign(fresh, key)
    return Exported(folder, Manifest.load(folder), parity, signed_by)


_TORCH_TYPES = {"FP32": torch.float32, "UINT8": torch.uint8, "UINT16": torch.uint16}


def _manifest(**values: Any) -> Manifest:
    """A manifest of checked values: what contradicts the model (top_k, the classes) is found before the work."""
    try:
        return msgspec.convert(msgspec.to_builtins(values), Manifest)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise ConfigError(f"the bundle cannot be described: {error}") from error


def _spec(bits: int, low: float, high: float) -> QuantizationSpec:
    try:
        return QuantizationSpec(bits, low, high)
    except ValueError as error:
        raise ConfigError(f"{error}; train with another range, or send floats (--floats)") from error


def wire_bits(channel: Channel, config: ExportConfig) -> int | None:
    """Bits for each value on the wire of a bundle, None for floats, as far as the channel and the settings say."""
    return None if config.floats else config.quantize_bits or channel.quantize_bits or _BITS


def _levels(channel: Channel, config: ExportConfig, limits: tuple[float, float] | None) -> QuantizationSpec | None:
    """The wire's levels: those of the training, or 8 bits over the feature's range and four sigma on both sides."""
    bits, radius = config.quantize_bits, channel.clip_norm
    if limits is None and radius is None and channel.quantize_bits is None and not config.unbounded:
        raise ConfigError(
            "nothing bounds the feature, so the encoder can outgrow any noise; train with a bottleneck (it ends in a "
            "sigmoid), with --clip-norm or with --quantize-bits, or allow it by name (--unbounded)"
        )
    if config.floats:
        return None
    if channel.quantize_bits is not None:
        low, high = channel.quantization_range
        return _spec(bits or channel.quantize_bits, low, high)
    if limits is None and radius is None:
        if bits is not None:
            raise ConfigError(
                "the range of this feature is unknown, so it cannot be quantised after training; train with "
                "--quantize-bits"
            )
        warnings.warn(
            "the range of this feature is unknown, so it is sent as floats; train with --quantize-bits or --clip-norm "
            "for a quarter of the bytes, or say --floats",
            SfumatoWarning,
            stacklevel=3,
        )
        return None
    low, high = limits or (-float(radius or 0), float(radius or 0))
    if radius is not None:
        low, high = max(low, -radius), min(high, radius)
    slack = 4 * channel.noise.widest
    levels = _spec(bits or _BITS, low - slack, high + slack)
    if levels.width > channel.noise_std > 0 and bits is None:
        warnings.warn(
            f"the {_BITS}-bit levels are {levels.width:.2g} apart, more than the noise of {channel.noise_std:.2g}; "
            "give more --quantize-bits if the accuracy suffers",
            SfumatoWarning,
            stacklevel=3,
        )
    return levels
