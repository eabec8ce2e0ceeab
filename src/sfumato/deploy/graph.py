"""What is inside an ONNX file, read without the package `onnx`: nothing that draws random numbers may be.

ONNX Runtime's random operators are a 31-bit linear congruential generator seeded from the clock: its state, and with it
all noise to come, follows from a few values. Noise is therefore an input, and a graph that makes its own is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sfumato.deploy.protobuf import Value, WireError, fields
from sfumato.errors import BundleError

__all__ = ["Operator", "check_graph", "operators"]

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_TRAINING_GRAPHS = (1, 2)
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

_STANDARD = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "Dropout"}  # and all that begin with Random
_DEEPEST = 64


@dataclass(frozen=True)
class Operator:
    """One node, wherever it is: in the graph, in a branch or loop, in a function.

    Attributes:
        name: such as `Conv`.
        domain: empty for the standard operators.
    """

    name: str
    domain: str


def operators(model: bytes) -> list[Operator]:
    """Every operator of an ONNX model, those of subgraphs, functions and training graphs included.

    Raises:
        WireError: the bytes are no ONNX model.
    """
    return [found for found in _walk_model(model) if isinstance(found, Operator)]


def check_graph(model: bytes, name: str) -> None:
    """Refuse a model that could draw random numbers or that is not complete in itself.

    Refused are the random operators of ONNX, `Dropout` in any form (the exporter leaves none), operators of other
    domains that the file does not define itself, and weights in other files, which no hash of the manifest covers.

    Args:
        model: the file's bytes.
        name: of the file, for messages.

    Raises:
        BundleError: the model is refused, or is no ONNX model.
    """
    try:
        found = list(_walk_model(model))
    except (WireError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{name} is no ONNX file ({error}); export the bundle again") from error
    defined = {(one.domain, one.name) for one in found if isinstance(one, _Function)}
    ours = [one for one in found if isinstance(one, Operator)]
    if not ours:
        raise BundleError(f"{name} is no ONNX file (it has no operators); export the bundle again")
    for one in ours:
        if (one.domain, one.name) in defined:
            continue  # its body was walked
        if one.domain in _STANDARD and (one.name.startswith("Random") or one.name in _RANDOM):
            raise BundleError(
                f"{name} draws random numbers itself (operator {one.name}), and ONNX's random numbers can be "
                "predicted: noise has to be an input; export the run with `sfumato export`"
            )
        if one.domain not in _STANDARD:
            raise BundleError(
                f"{name} uses {one.domain}::{one.name}, which is not a standard operator, so nobody can say whether "
                "it is random; export the run with `sfumato export`"
            )
    if any(isinstance(one, _External) for one in found):
        raise BundleError(f"{name} keeps weights in another file, which no hash covers; export the bundle again")


@dataclass(frozen=True)
class _Function:
    name: str
    domain: str


@dataclass(frozen=True)
class _External:
    pass


_Found = Operator | _Function | _External


def _walk_model(data: bytes) -> Iterator[_Found]:
    for name, value in fields(data):
        if name == _MODEL_GRAPH:
            yield from _walk_graph(_message(value), 0)
        elif name == _MODEL_FUNCTIONS:
            yield from _walk_function(_message(value))
        elif name == _MODEL_TRAINING:
            for inner, graph in fields(_message(value)):
                if inner in _TRAINING_GRAPHS:
                    yield from _walk_graph(_message(graph), 0)


def _walk_graph(data: memoryview, depth: int) -> Iterator[_Found]:
    for name, value in fields(data):
        if name == _GRAPH_NODE:
            yield from _walk_node(_message(value), depth)
        elif name == _GRAPH_INITIALIZER:
            yield from _walk_tensor(_message(value))
        elif name == _GRAPH_SPARSE:
            for _, part in fields(_message(value)):
                if not isinstance(part, int):
                    yield from _walk_tensor(part)


def _walk_function(data: memoryview) -> Iterator[_Found]:
    own, domain = "", ""
    for name, value in fields(data):
        if name == _FUNCTION_NAME:
            own = _text(value)
        elif name == _FUNCTION_DOMAIN:
            domain = _text(value)
        elif name == _FUNCTION_NODE:
            yield from _walk_node(_message(value), 0)
    if domain not in _STANDARD:  # a function cannot take the place of a standard operator
        yield _Function(own, domain)


def _walk_node(data: memoryview, depth: int) -> Iterator[_Found]:
    if depth > _DEEPEST:
        raise WireError("its graphs are nested too deeply")
    operator, domain = "", ""
    for name, value in fields(data):
        if name == _NODE_OPERATOR:
            operator = _text(value)
        elif name == _NODE_DOMAIN:
            domain = _text(value)
        elif name == _NODE_ATTRIBUTE:
            for inner, part in fields(_message(value)):
                if inner in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    yield from _walk_graph(_message(part), depth + 1)
                elif inner in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                    yield from _walk_tensor(_message(part))
    yield Operator(operator, domain)


def _walk_tensor(data: memoryview) -> Iterator[_Found]:
    for name, value in fields(data):
        if name == _TENSOR_EXTERNAL or (name == _TENSOR_LOCATION and value == 1):
            yield _External()


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise WireError("a number stands where a message belongs")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode()
