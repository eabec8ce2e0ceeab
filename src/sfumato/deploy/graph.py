"""What may be inside an ONNX file of a bundle: the operators and fields that our exporter writes, and nothing else.

Read without the package `onnx`, which a device does not have. Encoding of Protocol Buffers:
https://protobuf.dev/programming-guides/encoding, numbers of the fields: onnx.proto.
"""

from collections.abc import Iterator

from sfumato.errors import BundleError

__all__ = ["check_graph"]

# Deterministic operators of the standard that torch.onnx writes for inference. Not among them: random ones, of which
# ONNX Runtime's can be predicted; If, Loop and Scan, whose bodies are graphs; sequences, strings, training.
_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Col2Im Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh
    CumSum DFT DepthToSpace Det Div Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization IsInf IsNaN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax MatMul Max MaxPool Min Mish Mod Mul Neg Not Or PRelu Pad Pow RMSNormalization RNN Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    Resize Round STFT ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()
)
_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
_STANDARD = (b"", b"ai.onnx")

_NUMBER, _BYTES, _FLOAT = 0, 2, 5  # kinds of fields on the wire
_LONGEST = 10  # bytes of a 64-bit number

# By message: number of the field -> kinds it may have, and the message it holds. What is not here is refused, so are
# functions (25 of the model), training (20), sparse tensors (15 of the graph) and weights in other files (13, 14 of a
# tensor).
_PLAIN: dict[str, dict[int, tuple[int, ...]]] = {
    "model": {1: (_NUMBER,), 2: (_BYTES,), 3: (_BYTES,)},
    "opset": {1: (_BYTES,), 2: (_NUMBER,)},
    "graph": {2: (_BYTES,)},
    "node": {1: (_BYTES,), 2: (_BYTES,), 3: (_BYTES,), 4: (_BYTES,), 7: (_BYTES,)},
    "attribute": {
        1: (_BYTES,), 2: (_FLOAT,), 3: (_NUMBER,), 4: (_BYTES,), 7: (_FLOAT, _BYTES), 8: (_NUMBER, _BYTES), 9: (_BYTES,),
        20: (_NUMBER,),
    },
    "tensor": {
        1: (_NUMBER, _BYTES), 2: (_NUMBER,), 4: (_FLOAT, _BYTES), 5: (_NUMBER, _BYTES), 7: (_NUMBER, _BYTES),
        8: (_BYTES,), 9: (_BYTES,),
    },
    "value": {1: (_BYTES,)},
    "type": {},
    "tensor type": {1: (_NUMBER,)},
    "shape": {},
    "dimension": {1: (_NUMBER,), 2: (_BYTES,)},
}  # fmt: skip
_MESSAGES = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "dimension"},
}
_OPERATOR, _DOMAINS = ("node", 4), (("node", 7), ("opset", 1))


class _Refused(ValueError):
    """The file is not one that the exporter writes."""


def check_graph(model: bytes, name: str) -> None:
    """Refuse a network that the exporter cannot have written.

    Args:
        model: the file's bytes.
        name: of the file, for messages.

    Raises:
        BundleError: an operator, a domain or a field is not on the list, or the bytes are no ONNX model.
    """
    try:
        operators = list(_walk(memoryview(model), "model"))
    except _Refused as error:
        raise BundleError(f"{name} is refused: {error}; export the run again with `sfumato export`") from error
    if not operators:
        raise BundleError(f"{name} is no ONNX file (it has no operators); export the run again with `sfumato export`")


def _walk(data: memoryview, message: str) -> Iterator[str]:
    """The operators of a message; every field of it and of those inside is held against the lists."""
    plain, inner = _PLAIN[message], _MESSAGES.get(message, {})
    operators = 0
    for number, kind, value in _fields(data):
        if kind == _BYTES and number in inner:
            yield from _walk(value, inner[number])
        elif kind not in plain.get(number, ()):
            raise _Refused(f"its {message} holds field {number}, which the exporter never writes")
        elif (message, number) in _DOMAINS and bytes(value) not in _STANDARD:
            raise _Refused(f"it uses the domain {bytes(value)[:100]!r}, which is not the standard's")
        elif (message, number) == _OPERATOR:
            operators += 1
            yield _operator(bytes(value).decode("utf-8", "replace")[:100])
    if message == "node" and operators != 1:
        raise _Refused("one of its nodes has not exactly one operator")


def _operator(name: str) -> str:
    if name.startswith(_RANDOM):
        raise _Refused(
            f"it draws random numbers itself (operator {name}), which can be predicted; noise belongs into the channel, "
            "not into the network"
        )
    if name not in _OPERATORS:
        raise _Refused(f"it holds the operator {name!r}, which the exporter never writes")
    return name


def _fields(view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The fields of one message in their order: number, kind and, of what has a length, the bytes."""
    at = 0
    while at < len(view):
        tag, at = _number(view, at)
        kind, size = tag & 7, 0
        if kind == _NUMBER:
            _, at = _number(view, at)
        elif kind == _BYTES:
            size, at = _number(view, at)
        elif kind == _FLOAT:
            size = 4
        else:
            raise _Refused("it is no ONNX file")
        if at + size > len(view):
            raise _Refused("it is no ONNX file, or cut off")
        yield tag >> 3, kind, view[at : at + size]
        at += size


def _number(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(view[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise _Refused("it is no ONNX file, or cut off")
