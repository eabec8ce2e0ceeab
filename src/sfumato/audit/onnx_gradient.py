"""The gradient of an ONNX encoder, from its graph computed in PyTorch: whoever has the file can do that, too."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OnnxGradient"]

_TOLERANCE = 1e-3  # of the largest value: what two runtimes may differ by


class OnnxGradient(nn.Module):
    """A graph of the operators that encoders of images begin with, in PyTorch.

    Operators whose slope is 0 or nowhere defined, such as rounding, are not among them, nor are control flow and
    operators of other domains.

    Args:
        path: of the ONNX file, its weights in it or beside it.

    Raises:
        NotImplementedError: the graph has another operator, or the package `onnx` is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnx
        except ImportError:
            raise NotImplementedError("the package onnx is not installed") from None
        graph = onnx.load(str(path)).graph
        self._nodes: list[tuple[Callable[..., Any], list[str], list[str]]] = []
        self._constants = {one.name: _tensor(onnx.numpy_helper.to_array(one)) for one in graph.initializer}
        self._input = next(one.name for one in graph.input if one.name not in self._constants)
        self._outputs = [one.name for one in graph.output]
        for node in graph.node:
            given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant" and "value" in given:
                self._constants[node.output[0]] = _tensor(onnx.numpy_helper.to_array(given["value"]))
                continue
            if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
                raise NotImplementedError(f"the operator {node.op_type} has no gradient here")
            settings = {name: one.decode() if isinstance(one, bytes) else one for name, one in given.items()}
            made = partial(_OPERATORS[node.op_type], **settings)
            self._nodes.append((made, list(node.input), list(node.output)))

    def forward(self, x: Tensor) -> Tensor:
        """The first output, differentiable."""
        values: dict[str, Any] = {"": None, **self._constants, self._input: x}
        for operator, inputs, outputs in self._nodes:
            made = operator(*(values[name] for name in inputs))
            values.update(zip(outputs, made if isinstance(made, list | tuple) else [made], strict=False))
        found: Tensor = values[self._outputs[0]]
        return found

    def agrees(self, x: Tensor, value: Tensor) -> bool:
        """Whether it computes `value`, what the runtime makes of x."""
        try:
            with torch.no_grad():
                made = self(x)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError):  # settings that an operator here lacks
            return False
        scale = max(1e-6, float(value.abs().max()))
        return made.shape == value.shape and float((made - value).abs().max()) <= _TOLERANCE * scale


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy())


def _bordered(
    x: Tensor, size: Sequence[int], settings: dict[str, Any], fill: float = 0.0
) -> tuple[Tensor, list[int], list[int]]:
    """x with the border that a window of this size reads, which may be wider on one side; strides and dilations."""
    n = len(size)
    strides, dilations = (list(settings.get(name) or [1] * n) for name in ("strides", "dilations"))
    pads, auto = list(settings.get("pads") or [0] * (2 * n)), settings.get("auto_pad", "NOTSET")
    low, high = pads[:n], pads[n:]
    if auto.startswith("SAME"):  # without dilations: runtimes know none there
        sides = zip(x.shape[2:], size, strides, strict=True)
        missing = [max(0, (-(-side // step) - 1) * step + k - side) for side, k, step in sides]
        less, more = [one // 2 for one in missing], [one - one // 2 for one in missing]
        low, high = (less, more) if auto == "SAME_UPPER" else (more, less)
    flat = [side for pair in reversed(list(zip(low, high, strict=True))) for side in pair]
    return (F.pad(x, flat, value=fill) if any(flat) else x), strides, dilations


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: int = 1, **settings: Any) -> Tensor:
    x, strides, dilations = _bordered(x, weight.shape[2:], settings)
    return {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(strides)](x, weight, bias, strides, 0, dilations, group)


def _max_pool(x: Tensor, *, kernel_shape: list[int], ceil_mode: int = 0, **settings: Any) -> Any:
    x, strides, dilations = _bordered(x, kernel_shape, settings, -torch.inf)
    pool: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(strides)]
    return pool(x, kernel_shape, strides, 0, dilations, bool(ceil_mode))


def _average_pool(x: Tensor, *, kernel_shape: list[int], count_include_pad: int = 0, **settings: Any) -> Any:
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel_shape)]
    wide, strides, _ = _bordered(x, kernel_shape, settings)
    pooled = pool(wide, kernel_shape, strides)
    if count_include_pad:
        return pooled
    return pooled / pool(_bordered(torch.ones_like(x[:1, :1]), kernel_shape, settings)[0], kernel_shape, strides)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
          transA: int = 0, transB: int = 0) -> Tensor:  # fmt: skip
    made = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return made if c is None else made + beta * c


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, *, min: float | None = None,
          max: float | None = None) -> Tensor:  # fmt: skip
    return x.clamp(float(low) if low is not None else min, float(high) if high is not None else max)


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sides = shape.tolist()
    return x.reshape([x.shape[i] if side == 0 and not allowzero else side for i, side in enumerate(sides)])


def _reduced(x: Tensor, given: Tensor | None = None, *, keepdims: int = 1, axes: Sequence[int] = ()) -> Tensor:
    over = list(axes) if given is None else given.tolist()
    return x.mean(over or list(range(x.ndim)), keepdim=bool(keepdims))


def _squeezed(x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] = ()) -> Tensor:
    return x.squeeze(tuple(axes if given is None else given.tolist()))


def _unsqueezed(x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] = ()) -> Tensor:
    for axis in sorted(axes if given is None else given.tolist()):
        x = x.unsqueeze(axis)
    return x


def _split(x: Tensor, given: Tensor | None = None, *, axis: int = 0, split: Sequence[int] = (), **count: int) -> Any:
    sizes = list(split) if given is None else given.tolist()
    return x.split(sizes, axis) if sizes else x.chunk(count["num_outputs"], axis)


def _sliced(x: Tensor, *given: Tensor, **settings: list[int]) -> Tensor:
    parts = [one.tolist() for one in given] or [settings[n] for n in ("starts", "ends", "axes") if n in settings]
    starts, ends = parts[:2]
    axes = parts[2] if len(parts) > 2 else range(len(starts))
    steps = parts[3] if len(parts) > 3 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = x.index_select(axis, torch.arange(x.shape[axis])[start:end:step])
    return x


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "BatchNormalization": lambda x, scale, shift, mean, var, *, epsilon=1e-5, **_: F.batch_norm(
        x, mean, var, scale, shift, False, 0.0, epsilon
    ),
    "LayerNormalization": lambda x, scale, shift=None, *, axis=-1, epsilon=1e-5, **_: F.layer_norm(
        x, x.shape[axis:], scale, shift, epsilon
    ),
    "Relu": torch.relu,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Sigmoid": torch.sigmoid,
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Softplus": F.softplus,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Softmax": lambda x, *, axis=-1: x.softmax(axis),
    "Clip": _clip,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Min": torch.minimum,
    "Max": torch.maximum,
    "MatMul": torch.matmul,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "ReduceMean": _reduced,
    "Flatten": lambda x, *, axis=1: x.flatten(axis) if axis == 1 else x.reshape(x.shape[:axis].numel(), -1),
    "Reshape": _reshape,
    "Transpose": lambda x, *, perm=None: x.permute(perm or list(reversed(range(x.ndim)))),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Split": _split,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Shape": lambda x, **_: torch.tensor(x.shape),
    "Gather": lambda x, at, *, axis=0: x.index_select(axis, at.reshape(-1)).reshape(
        *x.shape[:axis], *at.shape, *x.shape[axis + 1 :]
    ),
    "Identity": lambda x: x,
    "Dropout": lambda x, *_, **__: x,
}
