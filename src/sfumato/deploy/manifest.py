"""What a bundle holds: shapes, preprocessing, noise, quantisation, hashes. Written as `manifest.json`."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from sfumato.deploy.checks import Reader
from sfumato.errors import BundleError
from sfumato.files import write_json

__all__ = [
    "DECODER",
    "ENCODER",
    "MANIFEST",
    "NAME",
    "SCHEMA_VERSION",
    "FeatureSpec",
    "InputSpec",
    "Manifest",
    "NoiseSpec",
    "OutputSpec",
    "QuantizationSpec",
    "file_digest",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"

Datatype = Literal["FP32", "UINT8", "UINT16"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_LARGEST = 16 << 20  # bytes of a manifest; a larger one is no manifest


@dataclass(frozen=True)
class InputSpec:
    """The encoder's image.

    Attributes:
        name: of the input in `encoder.onnx`.
        shape: (C, H, W) of one image; one channel is grey, three are RGB.
        range: smallest and largest pixel value.
        resize: `bilinear` stretches other sizes to (H, W) as training did, `exact` refuses them.
    """

    name: str
    shape: tuple[int, ...]
    range: tuple[float, ...] = (0.0, 1.0)
    resize: Literal["bilinear", "exact"] = "bilinear"


@dataclass(frozen=True)
class FeatureSpec:
    """The feature on the wire: the decoder's input.

    Attributes:
        name: of the output of `encoder.onnx` and the input of `decoder.onnx`.
        shape: of one feature, without the batch.
        datatype: as the Open Inference Protocol names it; integers are the quantiser's level numbers.
    """

    name: str
    shape: tuple[int, ...]
    datatype: Datatype


@dataclass(frozen=True)
class NoiseSpec:
    """What the device draws.

    Attributes:
        std: standard deviation of the Gaussian noise on every coordinate, multiplied inside the encoder.
        mode: `memoised` repeats the noise of a repeated input on one device, `fresh` draws anew for every query.
        uniforms: names of the encoder's further inputs, each (N, *feature) uniform in [0, 1): random masks.
    """

    std: float
    mode: Literal["memoised", "fresh"] = "memoised"
    uniforms: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizationSpec:
    """Equidistant levels: number q in 0 .. 2^bits - 1 means `low + q (high - low) / (2^bits - 1)`.

    Attributes:
        bits: 1 to 16.
        low: value of level 0.
        high: value of the last level.
    """

    bits: int
    low: float
    high: float


@dataclass(frozen=True)
class OutputSpec:
    """The decoder's answer, and how much of it a server gives away.

    Attributes:
        name: of the output of `decoder.onnx`.
        shape: (classes,).
        reveal: `logits`, `top_k` (the k largest) or `label` (the number of the largest alone).
        top_k: k; None unless `reveal` is `top_k`.
    """

    name: str
    shape: tuple[int, ...]
    reveal: Literal["logits", "top_k", "label"] = "logits"
    top_k: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything that client and server have to agree on, read from and written to `manifest.json`.

    Attributes:
        name: of the served model.
        version: of the served model, a decimal number as text.
        classes: names of the classes, in the order of the logits.
        input: the image.
        feature: what crosses the wire.
        clip_norm: L2 radius to which the encoder clips the feature, or None.
        noise: what the device draws.
        quantization: the levels, or None for floats.
        output: the logits.
        files: SHA-256 of each file of the bundle, by name.
        training: provenance as plain values (settings, data fingerprint, accuracy, versions).
        audit: the audit's headline as plain values, or None where nobody audited the run.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    input: InputSpec
    feature: FeatureSpec
    clip_norm: float | None
    noise: NoiseSpec
    quantization: QuantizationSpec | None
    output: OutputSpec
    files: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path | str, *, require_signature: Any = None, files: Iterable[str] | None = None) -> Self:
        """Read and verify a bundle's manifest.

        Args:
            folder: the bundle.
            require_signature: Ed25519 public key (an object of `cryptography`, PEM bytes, or the path of a PEM file)
                that must have signed the manifest; None asks for no signature.
            files: names of the files whose hashes have to be right; None means all that the manifest lists. A device
                needs no decoder, a server no encoder.

        Raises:
            BundleError: something is missing, damaged, of a newer schema, changed since the export, or not signed by
                the key; one sentence says what.
        """
        folder = Path(folder)
        manifest = cls.from_dict(_read(folder))
        if require_signature is not None:
            from sfumato.deploy.signing import verify_signature

            verify_signature(folder, manifest.canonical_bytes(), require_signature)
        for name in manifest.files if files is None else files:
            manifest.verify_file(folder, name)
        return manifest

    def save(self, folder: Path | str) -> None:
        """Write `manifest.json` into a folder."""
        write_json(Path(folder) / MANIFEST, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the schema's version."""
        return {"schema_version": SCHEMA_VERSION, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    def canonical_bytes(self) -> bytes:
        """The one byte string of this content: JSON with sorted keys and no spaces, UTF-8. It is what is signed."""
        return json.dumps(
            self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    def digest(self) -> str:
        """SHA-256 of `canonical_bytes`: the bundle's identity."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    def verify_file(self, folder: Path, name: str) -> None:
        """Check the hash of one file of the bundle.

        Raises:
            BundleError: it is not listed, missing, or has changed since the export.
        """
        self._compare(folder, name, file_digest)

    def read_file(self, folder: Path, name: str) -> bytes:
        """The bytes of one file of the bundle, verified: what is used is what was hashed.

        Raises:
            BundleError: it is not listed, missing, or has changed since the export.
        """
        data = b""

        def read(path: Path) -> str:
            nonlocal data
            data = path.read_bytes()
            return hashlib.sha256(data).hexdigest()

        self._compare(folder, name, read)
        return data

    def _compare(self, folder: Path, name: str, digest_of: Callable[[Path], str]) -> None:
        if name not in self.files:
            raise BundleError(f"the manifest in {folder} lists no {name}; export the bundle again")
        path = folder / name
        try:
            found = digest_of(path)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; copy the whole bundle again") from error
        if found != self.files[name]:
            raise BundleError(
                f"{path} is not the file that was exported (SHA-256 {found[:12]}..., the manifest says "
                f"{self.files[name][:12]}...); copy the bundle again"
            )

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """Read what `as_dict` gave, checking every value.

        Raises:
            BundleError: a value is missing, unknown, of the wrong type, or contradicts another one.
        """
        top = Reader(value, "manifest")
        newest = top.integer("schema_version", least=1)
        if newest > SCHEMA_VERSION:
            raise BundleError(
                f"the manifest has schema {newest}, this version reads up to {SCHEMA_VERSION}; upgrade sfumato"
            )
        image = top.part("input")
        feature = top.part("feature")
        noise = top.part("noise")
        levels = top.optional_part("quantization")
        output = top.part("output")
        manifest = cls(
            name=top.text("name"),
            version=top.text("version"),
            classes=top.texts("classes"),
            input=InputSpec(
                image.text("name"),
                image.shape("shape"),
                image.numbers("range"),
                image.choice("resize", ("bilinear", "exact")),
            ),
            feature=FeatureSpec(
                feature.text("name"), feature.shape("shape"), feature.choice("datatype", ("FP32", "UINT8", "UINT16"))
            ),
            clip_norm=top.optional_number("clip_norm"),
            noise=NoiseSpec(noise.number("std"), noise.choice("mode", ("memoised", "fresh")), noise.texts("uniforms")),
            quantization=None
            if levels is None
            else QuantizationSpec(levels.integer("bits", least=1), levels.number("low"), levels.number("high")),
            output=OutputSpec(
                output.text("name"),
                output.shape("shape"),
                output.choice("reveal", ("logits", "top_k", "label")),
                output.optional_integer("top_k"),
            ),
            files=top.text_map("files"),
            training=top.mapping("training"),
            audit=top.optional_mapping("audit"),
        )
        for part in (top, image, feature, noise, output, *([] if levels is None else [levels])):
            part.done()
        manifest._check()
        return manifest

    def _check(self) -> None:
        for wrong, sentence in (
            (not NAME.fullmatch(self.name), f"name {self.name!r} holds more than letters, digits and ._-"),
            (not re.fullmatch(r"[1-9][0-9]{0,8}", self.version), f"version {self.version!r} is no whole number from 1"),
            (
                len(self.input.shape) != 3 or self.input.shape[0] not in (1, 3),
                "input is no grey or RGB (C, H, W)",
            ),
            (self.input.range != (0.0, 1.0), f"range {list(self.input.range)} is not [0, 1]"),
            (self.noise.std < 0, f"std {self.noise.std} of the noise is negative"),
            (self.clip_norm is not None and self.clip_norm <= 0, f"clip_norm {self.clip_norm} is not above 0"),
            (self.output.shape != (len(self.classes),), f"shape {list(self.output.shape)} is not one value per class"),
            (
                (self.output.top_k is not None) != (self.output.reveal == "top_k")
                or not 1 <= (self.output.top_k or 1) <= len(self.classes),
                f"top_k {self.output.top_k} does not fit {self.output.reveal!r} and {len(self.classes)} classes",
            ),
            (self.feature.datatype != _datatype(self.quantization), f"{self.feature.datatype} does not fit the levels"),
            (
                self.quantization is not None
                and (self.quantization.bits > 16 or self.quantization.low >= self.quantization.high),
                f"quantization {self.quantization} has no levels",
            ),
            (not {ENCODER, DECODER} <= set(self.files), f"files lack {ENCODER} or {DECODER}"),
            (
                any(not _DIGEST.fullmatch(digest) or not _inside(name) for name, digest in self.files.items()),
                "files hold a name outside the bundle or something that is no SHA-256",
            ),
        ):
            if wrong:
                raise BundleError(f"the manifest is not valid: {sentence}; export the bundle again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _datatype(levels: QuantizationSpec | None) -> Datatype:
    if levels is None:
        return "FP32"
    return "UINT8" if levels.bits <= 8 else "UINT16"


def _inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def _read(folder: Path) -> Any:
    path = folder / MANIFEST
    try:
        with path.open("rb") as handle:
            data = handle.read(_LARGEST + 1)
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle (cannot read {MANIFEST}: {error.strerror}); make one with "
            f"`sfumato export RUN --out {folder}`"
        ) from error
    if len(data) > _LARGEST:
        raise BundleError(f"{path} is larger than {_LARGEST >> 20} MiB; export the bundle again")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}); export the bundle again") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take different ones of two equal keys; the signature would then cover what is not used.
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
