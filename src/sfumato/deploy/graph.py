"""Networks of a bundle: held against the list of what our exporter writes, then run by ONNX Runtime on one thread.

The list is checked without the package `onnx`, which a device does not have. Encoding of Protocol Buffers:
https://protobuf.dev/programming-guides/encoding, numbers of the fields: onnx.proto.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.deploy.manifest import ENCODER, UNSET, Manifest
from sfumato.errors import BundleError, ConfigError

__all__ = ["check_graph", "company_gap", "run", "session_of"]

# Deterministic operators of the standard that torch.onnx writes for inference. Not among them: random ones, of which
# ONNX Runtime's can be predicted; If, Loop and Scan, whose bodies are graphs; sequences, strings, training.
_OPERATORS = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention",
    "AveragePool", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Col2Im", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos",
    "Cosh", "CumSum", "DFT", "DepthToSpace", "Det", "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool",
    "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "RMSNormalization", "RNN", "Range",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "STFT",
    "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
    "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
_Rows = Callable[..., NDArray[Any]]
_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
_STANDARD = (b"", b"ai.onnx")

_N, _B, _F = {0}, {2}, {5}  # kinds of fields on the wire: a number, what has a length, four bytes
_LONGEST = 10  # bytes of a 64-bit number

# By message: number of the field -> the kinds it may have, or the message it holds. What is not here is refused, so are
# functions (25 of the model), training (20), sparse tensors (15 of the graph), subgraphs (6 of an attribute) and
# weights in other files (13 and 14 of a tensor).
_FIELDS: dict[str, dict[int, set[int] | str]] = {
    "model": {1: _N, 2: _B, 3: _B, 7: "graph", 8: "opset"},
    "opset": {1: _B, 2: _N},
    "graph": {1: "node", 2: _B, 5: "tensor", 11: "value", 12: "value"},
    "node": {1: _B, 2: _B, 3: _B, 4: _B, 5: "attribute", 7: _B},
    "attribute": {1: _B, 2: _F, 3: _N, 4: _B, 5: "tensor", 7: _F | _B, 8: _N | _B, 9: _B, 20: _N},
    "tensor": {1: _N | _B, 2: _N, 4: _F | _B, 5: _N | _B, 7: _N | _B, 8: _B, 9: _B},
    "value": {1: _B, 2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {1: _N, 2: "shape"},
    "shape": {1: "dimension"},
    "dimension": {1: _N, 2: _B},
}
_OPERATOR, _DOMAINS = ("node", 4), (("node", 7), ("opset", 1))


class _Disallowed(ValueError):
    """The file is not one that the exporter writes."""


def check_graph(model: bytes, name: str) -> None:
    """Refuse (BundleError) a network with an operator, a domain or a field that the exporter never writes."""
    try:
        operators = list(_walk(memoryview(model), "model"))
    except _Disallowed as error:
        raise BundleError(f"{name} is refused: {error}; export the run again with `sfumato export`") from error
    if not operators:
        raise BundleError(f"{name} is no ONNX file (it has no operators); export the run again with `sfumato export`")


def _walk(data: memoryview, message: str) -> Iterator[str]:
    """The operators of a message; every field of it and of those inside is held against the list."""
    operators = 0
    for number, kind, value in _fields(data):
        allowed = _FIELDS[message].get(number, set())
        if isinstance(allowed, str) and kind in _B:
            yield from _walk(value, allowed)
        elif isinstance(allowed, str) or kind not in allowed:
            raise _Disallowed(f"its {message} holds field {number}, which the exporter never writes")
        elif (message, number) in _DOMAINS and bytes(value) not in _STANDARD:
            raise _Disallowed(f"it uses the domain {bytes(value)[:100]!r}, which is not the standard's")
        elif (message, number) == _OPERATOR:
            operators += 1
            yield _operator(bytes(value).decode("utf-8", "replace")[:100])
    if message == "node" and operators != 1:
        raise _Disallowed("one of its nodes has not exactly one operator")


def _operator(name: str) -> str:
    if name.startswith(_RANDOM):
        raise _Disallowed(
            f"it draws random numbers itself (operator {name}), which can be predicted; noise belongs into the "
            "channel, not into the network"
        )
    if name not in _OPERATORS:
        raise _Disallowed(f"it holds the operator {name!r}, which the exporter never writes")
    return name


def _fields(view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The fields of one message in their order: number, kind and, of what has a length, the bytes."""
    at = 0
    while at < len(view):
        tag, at = _number(view, at)
        kind, size = tag & 7, 0
        if kind in _N:
            _, at = _number(view, at)
        elif kind in _B:
            size, at = _number(view, at)
        elif kind in _F:
            size = 4
        else:
            raise _Disallowed("it is no ONNX file")
        if at + size > len(view):
            raise _Disallowed("it is no ONNX file, or cut off")
        yield tag >> 3, kind, view[at : at + size]
        at += size


def _number(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(view[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise _Disallowed("it is no ONNX file, or cut off")


_TYPES = {"FP32": "tensor(float)", "UINT8": "tensor(uint8)", "UINT16": "tensor(uint16)",
          "INT64": "tensor(int64)"}  # fmt: skip


def session_of(manifest: Manifest, model: bytes, name: str) -> Any:
    """An `onnxruntime.InferenceSession` of `encoder.onnx` or `decoder.onnx` (`name`) that fits its manifest.

    From bytes, not from a path: what runs is what was hashed, whatever happens to the file in between. On one thread,
    which is fastest for small networks, gives equal results everywhere, and leaves no threads that a forked child
    would miss.

    Raises:
        BundleError: it holds what the exporter never writes, cannot be loaded, or has other inputs or outputs.
        ConfigError: ONNX Runtime is missing.
    """
    check_graph(model, name)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("this needs the package onnxruntime; install sfumato[edge]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal; what is refused is raised as well
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen types, all of which mean this
        raise BundleError(f"ONNX Runtime cannot load {name} ({str(error)[:200]}); export the bundle again") from error
    feature = (manifest.feature.name, _TYPES["FP32" if name == ENCODER else manifest.feature.datatype])
    inputs = {feature[0]: (feature[1], manifest.feature.shape)}
    output: tuple[str, str, tuple[int, ...]] = (manifest.output.name, _TYPES["FP32"], manifest.output.shape)
    if name == ENCODER:
        output = (*feature, manifest.feature.shape)
        inputs = dict.fromkeys(manifest.noise.uniforms, (_TYPES["FP32"], manifest.feature.shape))
        given = _TYPES["FP32" if manifest.input.tokens is UNSET else "INT64"]
        inputs[manifest.input.name] = (given, manifest.input.shape)
    found = {one.name: (one.type, tuple(one.shape[1:])) for one in session.get_inputs()}
    answers = [(one.name, one.type, tuple(one.shape[1:])) for one in session.get_outputs()]
    if found != inputs or answers != [output]:
        raise BundleError(
            f"{name} maps {found} to {answers}, the manifest says {inputs} to {[output]}; export the bundle again"
        )
    return session


def run(session: Any, given: Mapping[str, Any], name: str) -> Any:
    """The one output of a session; a BundleError says that the network fails on these inputs."""
    try:
        (found,) = session.run(None, given)
    except Exception as error:
        raise BundleError(f"{name} fails ({str(error)[:200]}); do not use this bundle") from error
    return found


def company_gap(run: _Rows, inputs: Sequence[NDArray[Any]], reference: _Rows | None = None) -> tuple[float, float]:
    """How far rows depend on their company: the largest absolute difference, and the largest absolute value.

    Rows alone, by `reference` if it is another network, against the batch, the batch in reverse order, one row. The
    difference is infinite where shapes differ, and can be NaN: ask `not gap <= tolerance`.
    """
    one = reference or run
    alone = np.concatenate([one(*(part[row : row + 1] for part in inputs)) for row in range(len(inputs[0]))])
    gaps = []
    for rows in (slice(None), slice(None, None, -1), slice(0, 1)):
        found = run(*(np.ascontiguousarray(part[rows]) for part in inputs))
        gaps.append(np.abs(found - alone[rows]).max() if found.shape == alone[rows].shape else np.inf)
    return float(np.max(gaps)), float(np.abs(alone).max())
