"""What a bundle holds: shapes, range, noise, levels, digests. Written as `manifest.json`."""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from sfumato.deploy.files import LARGEST_FILE, read_regular
from sfumato.errors import BundleError, ConfigError

try:
    import msgspec
    from msgspec import UNSET, Meta, UnsetType
except ImportError:
    raise ConfigError("bundles need the package msgspec; install sfumato[edge]") from None

__all__ = [
    "DECODER",
    "ENCODER",
    "MANIFEST",
    "NAME",
    "NOISE",
    "SCHEMA_VERSION",
    "UNSET",
    "AuditSpec",
    "AuditedChannel",
    "FeatureSpec",
    "InputSpec",
    "Manifest",
    "NoiseSpec",
    "OutputSpec",
    "QuantizationSpec",
    "UnsetType",
    "datatype_of",
]

SCHEMA_VERSION: Final = 2
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
NOISE = "noise.f32"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_LARGEST_MANIFEST = 16 << 20
_LEAST_STD = 1e-6  # float32, in which the encoder computes, knows nothing finer
_MOST_VALUES = 10**8  # of one image or feature, which has to fit into a device's memory several times
_TOO_LARGE = f"the image or the feature has more than {_MOST_VALUES:,} values"
_END = "$(?!\n)"  # `$` alone also matches before a line feed
_FILE = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # no leading dot, drive, backslash or NUL

Name = Annotated[str, Meta(pattern=f"^{NAME.pattern}{_END}")]
FileName = Annotated[str, Meta(pattern=f"^{_FILE}(/{_FILE})*{_END}", max_length=400)]
Digest = Annotated[str, Meta(pattern=f"^[0-9a-f]{{64}}{_END}")]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Shape = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=8)]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries that nobody knows are refused: they would be signed and have no effect."""


class InputSpec(_Part, frozen=True):
    """The encoder's image (C, H, W) with values in [0, 1]; one channel is grey, three are RGB.

    `bilinear` stretches other sizes to (H, W) as training did, `exact` refuses them. With `tokens` it is a text: int64
    (L,), whole numbers below `tokens`, of exactly that length.
    """

    name: Name
    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=3)]
    resize: Literal["bilinear", "exact"] = "bilinear"
    tokens: Size | UnsetType = UNSET

    def __post_init__(self) -> None:
        text = self.tokens is not UNSET
        if text and (len(self.shape) != 1 or self.resize != "exact"):
            raise ValueError(f"a text of shape {list(self.shape)} is no row of tokens that is never resized")
        if not text and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"an image of shape {list(self.shape)} has not 1 or 3 channels, a height and a width")


class FeatureSpec(_Part, frozen=True):
    """The feature without the batch: the encoder's output, and on the wire, in `datatype`, the decoder's input.

    `range` holds the smallest and the largest value of the encoder, before clip and noise; None if unknown.
    """

    name: Name
    shape: Shape
    datatype: Literal["FP32", "UINT8", "UINT16"]
    range: tuple[Number, Number] | None = None

    def __post_init__(self) -> None:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range {list(self.range)} is empty")


class NoiseSpec(_Part, frozen=True):
    """The standard deviation of the device's Gaussian noise on every coordinate.

    `uniforms` names the encoder's further inputs, each (N, *feature) uniform in [0, 1): random masks. With `rank`,
    `std` is the root mean square over the coordinates, and `noise.f32` holds the numbers of noise with a shape:
    (D, 1 + rank) float32, little-endian, a standard deviation of each coordinate and a factor of the covariance.
    """

    std: Annotated[float, Meta(ge=0, le=1e6)]
    uniforms: tuple[Name, ...] = ()
    rank: Annotated[int, Meta(ge=0, le=2**20)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if 0 < self.std < _LEAST_STD:
            raise ValueError(f"std {self.std:g} is neither 0 nor at least {_LEAST_STD:g}")


class QuantizationSpec(_Part, frozen=True):
    """Equidistant levels: number q in 0 .. 2^bits - 1 means `low + q width`, `width = (high - low) / (2^bits - 1)`."""

    bits: Annotated[int, Meta(ge=1, le=16)]
    low: Number
    high: Number

    def __post_init__(self) -> None:
        if self.width < 2**-23 * max(abs(self.low), abs(self.high), 2**-60):  # float32 could not tell them apart
            raise ValueError(f"the levels from {self.low:g} to {self.high:g} are none")

    @property
    def width(self) -> float:
        """The distance of two levels."""
        return (self.high - self.low) / (2**self.bits - 1)


class OutputSpec(_Part, frozen=True):
    """The decoder's logits (classes,), and how much a server gives away: all, the `top_k` largest, the label."""

    name: Name
    shape: tuple[Size]
    reveal: Literal["logits", "top_k", "label"] = "logits"
    top_k: Size | None = None

    def __post_init__(self) -> None:
        if (self.top_k is not None) != (self.reveal == "top_k") or (self.top_k or 1) > self.shape[0]:
            raise ValueError(f"top_k {self.top_k} does not fit {self.reveal!r} and {self.shape[0]} classes")


class AuditedChannel(_Part, frozen=True):
    """The channel that an audit attacked; the device never protects less.

    `noise_shape` is the SHA-256 of `noise.f32` where the noise has a shape.
    """

    noise_std: Annotated[float, Meta(ge=0, le=1e6)]
    clip_norm: Positive | None = None
    quantize_bits: int | None = None
    transforms: tuple[str, ...] = ()
    noise_shape: Digest | UnsetType = UNSET


class AuditSpec(_Part, frozen=True):
    """What an audit says about these weights, shortened: see `audited.audit_headline`."""

    sha256: Digest
    target: str
    channel: AuditedChannel
    headline: str
    notes: tuple[str, ...] = ()
    strongest: dict[str, Any] = {}
    unconverged: int = 0
    thresholds: tuple[dict[str, Any], ...] = ()
    passed: bool | None = None
    minutes: float | None = None
    sfumato: str = ""
    commit: str | None = None


class Manifest(_Part, frozen=True, kw_only=True):
    """Everything that client and server have to agree on, read from and written to `manifest.json`.

    Attributes:
        schema_version: of this format.
        name: of the served model.
        version: of the served model, a decimal number as text.
        classes: names of the classes, in the order of the logits, no two alike.
        input: the image, or the text.
        feature: what the encoder gives and what crosses the wire.
        clip_norm: L2 radius to which the device clips the feature, or None.
        noise: what the device draws.
        quantization: the levels, or None for floats.
        output: the logits.
        files: SHA-256 of each file of the bundle, by its path inside.
        sizes: bytes of each file.
        training: provenance as plain values (settings, data fingerprint, accuracy, versions).
        audit: the audit's headline, or None where nobody audited the run.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    name: Name
    version: Annotated[str, Meta(pattern=f"^[1-9][0-9]{{0,8}}{_END}")]
    classes: tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...]
    input: InputSpec
    feature: FeatureSpec
    clip_norm: Positive | None
    noise: NoiseSpec
    quantization: QuantizationSpec | None
    output: OutputSpec
    files: dict[FileName, Digest]
    sizes: dict[FileName, Annotated[int, Meta(ge=0, le=LARGEST_FILE)]]
    training: dict[str, Any] = {}
    audit: AuditSpec | None = None

    def __post_init__(self) -> None:
        printable, kind = all(map(str.isprintable, self.classes)), self.feature.datatype
        inputs = (self.input.name, *self.noise.uniforms)
        free = (self.training, self.audit and (self.audit.strongest, self.audit.thresholds))
        for wrong, sentence in (
            (max(math.prod(part.shape) for part in (self.input, self.feature)) > _MOST_VALUES, _TOO_LARGE),
            (len(set(inputs)) < len(inputs), "two inputs of the encoder have one name"),
            (
                self.output.name in ("indices", "probabilities"),
                "the output has the name of another one of the server's",
            ),
            (kind != datatype_of(self.quantization), f"{kind} does not fit the levels"),
            (self.output.shape != (len(self.classes),), f"shape {list(self.output.shape)} is not one value per class"),
            (len(set(self.classes)) < len(self.classes), "two classes have one name; give each a name of its own"),
            (not printable, "a class name holds control characters or is no Unicode text"),
            (self.files.keys() != self.sizes.keys(), "files and sizes name different files"),
            (_deep(free), "it is nested too deep"),
            (not {ENCODER, DECODER} <= self.files.keys(), f"files lack {ENCODER} or {DECODER}"),
            ((NOISE in self.files) != (self.noise.rank is not UNSET), f"noise with a rank and {NOISE} go together"),
        ):
            if wrong:
                raise ValueError(sentence)

    @classmethod
    def load(cls, folder: Path | str, *, require_signature: Any = None, files: Iterable[str] | None = None) -> Self:
        """Read and verify a bundle's manifest.

        A required signature is checked first, over the very bytes of the file: nothing else is read before it holds.

        Args:
            folder: the bundle.
            require_signature: one or several Ed25519 public keys (path of a PEM file, PEM bytes or key object), any one
                of which must have signed the manifest; None asks for no signature.
            files: names of the files whose digests have to be right; None means all that the manifest lists. A device
                needs no decoder, a server no encoder.

        Raises:
            BundleError: something is missing, damaged, of another schema, changed since the export, or not signed by
                a trusted key; one sentence says what.
        """
        folder = Path(folder)
        try:
            data = read_regular(folder / MANIFEST, _LARGEST_MANIFEST)
        except OSError as error:
            raise BundleError(
                f"{folder} is not a bundle (cannot read {MANIFEST}: {error.strerror}); make one with "
                f"`sfumato export RUN --out {folder}`"
            ) from error
        if require_signature is not None:
            from sfumato.deploy.signing import verify_signature

            verify_signature(folder, data, require_signature)
        manifest = cls.decode(data)
        for name in manifest.files if files is None else files:
            manifest.read_file(folder, name)
        return manifest

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` gave, checking every value.

        Raises:
            BundleError: a value is missing, unknown, of the wrong type, or contradicts another one.
        """
        try:
            version = msgspec.json.decode(data, type=_Version).schema_version
            if version == SCHEMA_VERSION:
                manifest = msgspec.json.decode(data, type=cls)
                manifest.encode()  # what cannot be written again is refused here, not somewhere later
                return manifest
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise BundleError(f"the manifest is not valid: {error}; export the bundle again") from error
        if version < SCHEMA_VERSION:
            raise BundleError(
                "this bundle was exported by version 0.1, whose encoder adds the noise itself; convert it by exporting "
                "the run again: `sfumato export RUN --out BUNDLE`"
            )
        raise BundleError(f"the manifest has schema {version}, this version reads {SCHEMA_VERSION}; upgrade sfumato")

    def encode(self) -> bytes:
        """The content of `manifest.json`: indented JSON in UTF-8, entries in the order of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def save(self, folder: Path | str) -> None:
        """Write `manifest.json` into a folder."""
        (Path(folder) / MANIFEST).write_bytes(self.encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = msgspec.json.decode(self.encode())
        return plain

    def digest(self) -> str:
        """SHA-256 of `encode`: the bundle's identity."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of `manifest.json`, made from these classes."""
        return msgspec.json.schema(cls)

    def read_file(self, folder: Path, name: str) -> bytes:
        """The bytes of one file of the bundle, verified: what is used is what was hashed.

        Raises:
            BundleError: it is not listed, not a regular file, missing, or has changed since the export.
        """
        if name not in self.files:
            raise BundleError(f"the manifest in {folder} lists no {name}; export the bundle again")
        path = folder / name
        try:
            data = read_regular(path, self.sizes[name])
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; copy the whole bundle again") from error
        if len(data) != self.sizes[name] or (found := hashlib.sha256(data).hexdigest()) != self.files[name]:
            what = f"{len(data)} bytes" if len(data) != self.sizes[name] else f"SHA-256 {found[:12]}..."
            raise BundleError(f"{path} is not the file that was exported (it has {what}); copy the bundle again")
        return data


def _deep(value: Any, levels: int = 32) -> bool:
    """Whether lists and dictionaries lie in one another beyond what other readers can be asked to follow."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return not levels or any(_deep(part, levels - 1) for part in parts)


class _Version(msgspec.Struct):
    schema_version: int


def datatype_of(levels: QuantizationSpec | None) -> str:
    """What numbers of these levels travel as; floats where there are none."""
    return "FP32" if levels is None else "UINT8" if levels.bits <= 8 else "UINT16"
