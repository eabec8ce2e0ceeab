"""What an encoder takes: layout, type, range, channel order and size, from its file and from `--input input.yaml`."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, fx, nn

from sfumato.errors import ConfigError, first_line

Type = Literal["float32", "float16", "uint8"]
Side = Annotated[int, Meta(ge=1, le=8192)]

_ONNX_TYPES: dict[str, Type] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}
_HARDLY, _LITTLE, _TIMES = 1e-3, 0.03, 8.0
_UNMOVED = 0.9  # share of a feature's values that do not react to darker images


class InputDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image (C, H, W) in [0, 1] becomes an encoder's input: `(low + (high - low) x - mean) / std`.

    What is left out is read from the encoder's file where it says it.

    Attributes:
        layout: NCHW, or NHWC with the channels last.
        type: of the values; uint8 are rounded.
        range: (low, high) of a black and a white pixel; (0, 255) for uint8, else (0, 1).
        mean: subtracted afterwards, one value or one per channel in the encoder's order.
        std: by which the difference is divided.
        channels: RGB, BGR, or grey; grey images are given to all channels of a colour encoder.
        size: (height, width).

    >>> msgspec.convert({"range": [0, 255], "channels": "BGR"}, InputDescription).range
    (0.0, 255.0)
    """

    layout: Literal["NCHW", "NHWC"] | None = None
    type: Type | None = None
    range: tuple[float, float] | None = None
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    channels: Literal["RGB", "BGR", "grey"] | None = None
    size: tuple[Side, Side] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if isinstance(value := getattr(self, name), list) and len(value) not in (1, 3):
                raise ValueError(f"{name} has {len(value)} values; give one, or one for each of three channels")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}; give black first and then white, such as [0, 255]")
        if not all(value > 0 for value in (self.std if isinstance(self.std, list) else [self.std])):
            raise ValueError("std has to be positive")
        if self.type == "uint8" and (self.mean != 0 or self.std != 1):
            raise ValueError("uint8 values cannot be normalised; leave mean and std out, or give type: float32")


def read_description(path: Path) -> InputDescription:
    """The description in a YAML file.

    Raises:
        ConfigError: the file cannot be read, or describes no input.
    """
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=InputDescription)
    except (OSError, ValueError) as error:  # msgspec's errors, and those above, are ValueErrors
        raise ConfigError(
            f"{path} does not describe an input ({first_line(error)}); give a YAML file with some of "
            f"{', '.join(InputDescription.__struct_fields__)}, such as `range: [0, 255]`"
        ) from None


class Declared(NamedTuple):
    """The input that a file declares: its name, type, and sides, None where any will do."""

    name: str
    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.type} ({', '.join('any' if side is None else str(side) for side in self.shape)})"


def declared_of(module: nn.Module) -> Declared | None:
    """What the encoder of an ONNX file or an exported program declares; None where nothing is declared."""
    inner = getattr(module, "inner", None)
    name = kind = None
    if (session := getattr(inner, "session", None)) is not None:
        one = session.get_inputs()[0]
        name, kind, shape = one.name, _ONNX_TYPES.get(one.type, one.type), one.shape
    elif isinstance(inner, fx.GraphModule):
        for node in inner.graph.nodes:
            if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor) and name is None:
                name, kind, shape = str(node.name), str(value.dtype).removeprefix("torch."), value.shape
    if name is None:
        return None
    return Declared(name, str(kind), tuple(side if isinstance(side, int) else None for side in shape))


class Described(nn.Module):
    """An encoder that takes images (N, C, H, W) in [0, 1], whatever the one inside takes.

    Raises:
        ConfigError: the file declares something else than what was given.
    """

    def __init__(self, inner: nn.Module, given: InputDescription | None) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.inner, self.declared = inner, declared_of(inner)
        given = given or InputDescription()
        shape: tuple[int | None, ...] = (None,) * 4
        if self.declared is not None and len(self.declared.shape) == 4:
            shape = self.declared.shape
        layout = given.layout or ("NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW")
        type_: Any = given.type or (self.declared.type if self.declared is not None else "float32")
        if type_ not in _ONNX_TYPES.values():
            raise ConfigError(f"the encoder declares {self.declared}; an audit feeds float32, float16 or uint8")
        _, count, *sides = shape if layout == "NCHW" else (shape[0], shape[3], shape[1], shape[2])
        fixed = None if None in sides else tuple(side for side in sides if side is not None)
        size: tuple[int, ...] | None = given.size or fixed
        for name, ours, theirs in (
            ("type", given.type, self.declared and self.declared.type),
            ("size", given.size, fixed),
            ("channels", given.channels and (1 if given.channels == "grey" else 3), count),
        ):
            if ours is not None and theirs is not None and ours != theirs:
                raise ConfigError(f"--input says {name}: {_plain(ours)}, but the encoder declares {self.declared}")
        self.count = count or ({"grey": 1, None: None}.get(given.channels, 3))
        self.channels = given.channels or (None if self.count is None else "grey" if self.count == 1 else "RGB")
        self.layout, self.kind, self.size = layout, type_, size
        self.range = given.range or ((0.0, 255.0) if type_ == "uint8" else (0.0, 1.0))
        values = (torch.tensor(value).reshape(-1, 1, 1) for value in (given.mean, given.std))
        for name, value in zip(("mean", "std"), values, strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Any:
        """(N, C, H, W) in [0, 1] -> what the encoder makes of them, in float32."""
        low, high = self.range
        x = low + (high - low) * x
        if self.count == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.channels == "BGR":
            x = x.flip(1)
        x = (x - self.mean) / self.std
        if self.kind == "uint8":
            x = x.round().clamp(0, 255)
        x = x.to(getattr(torch, self.kind))
        made = self.inner(x.permute(0, 2, 3, 1).contiguous() if self.layout == "NHWC" else x)
        return made.float() if isinstance(made, Tensor) else made

    def extra_repr(self) -> str:
        """So that what is fed is part of how the encoder prints itself, and of its digest."""
        return self.sentence()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W), where all of it is known."""
        return None if self.size is None or self.count is None else (self.count, *self.size)

    def as_dict(self) -> dict[str, Any]:
        """For `audit.json` and the digest of what was audited."""
        return {
            "declared": None if self.declared is None else str(self.declared),
            "layout": self.layout,
            "type": self.kind,
            "channels": self.channels,
            "range": list(self.range),
            **{name: getattr(self, name).flatten().tolist() for name in ("mean", "std")},
            "size": None if self.size is None else list(self.size),
        }

    def sentence(self) -> str:
        """What is fed, and what the file declares."""
        one = self.as_dict()
        fed = f"{one['type']} {one['layout']}, {one['range'][0]:g} to {one['range'][1]:g}"
        if one["mean"] != [0] or one["std"] != [1]:
            fed += f", minus {_plain(one['mean'])}, over {_plain(one['std'])}"
        fed += f", {one['channels']}" if one["channels"] else ""
        fed += f", {one['size'][0]} x {one['size'][1]}" if one["size"] else ""
        return f"{fed}; {'nothing is declared' if self.declared is None else f'the encoder declares {self.declared}'}"


def notice_scale(edge: Described, x: Tensor) -> str:
    """A sentence where the features hardly depend on the images, or saturate; empty where neither is seen.

    An encoder that expects 0 to 255 sees almost nothing of values in [0, 1], and one that expects [0, 1] saturates at
    255. The variation is that between images over the size of the feature; it is compared with what the same encoder
    makes of images 255 times as bright.
    """

    @torch.no_grad()
    def made(scale: float) -> Tensor:
        low, high = edge.range
        edge.range = (low, low + scale * (high - low))
        try:
            out: Tensor = edge(x).flatten(1).double()
        finally:
            edge.range = (low, high)
        return out

    def variation(z: Tensor) -> float:
        return float((z.var(0).mean() / z.square().mean().clamp_min(1e-300)).sqrt())

    z, darker = made(1.0), made(0.9)
    varies, brighter = variation(z), 0.0 if edge.kind == "uint8" else variation(made(255.0))
    remedy = f"the audit feeds {edge.sentence()}; say with --input what the encoder was trained on"
    if varies < _HARDLY or (varies < _LITTLE and brighter > _TIMES * varies):
        return f"the features hardly depend on the image: they differ by {100 * varies:.2g} % of their size; {remedy}"
    there = z.abs() > 1e-6 * z.abs().max()
    unmoved = ((z - darker).abs() <= 1e-3 * z.abs())[there].double().mean()
    if bool(there.any()) and float(unmoved) > _UNMOVED:
        share = 100 * float(unmoved)
        return f"the features saturate: {share:.0f} % of their values stay when the images become darker; {remedy}"
    return ""


def _plain(value: Any) -> str:
    return f"[{', '.join(f'{one:g}' for one in value)}]" if isinstance(value, tuple | list) else str(value)
