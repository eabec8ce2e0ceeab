"""From a torch module to the bytes of an ONNX file: recorded, folded, stripped of what does not compute."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError, first_line
from sfumato.split.ranges import BOUNDED
from sfumato.torch_utils import evaluating

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_batch_norms", "output_range", "to_onnx"]

_BATCH = "batch"

_TESTS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not"}
# Their values are some of those of their first input, averages of them, or smaller.
_KEEPING = {
    "AveragePool", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Mul",
    "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def to_onnx(module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str], output: str) -> bytes:
    """Export a module in evaluation mode with a dynamic batch.

    Batch normalisation is folded into the convolutions, or into one multiplication and one addition where there is no
    convolution: running statistics describe the training data and stay out of the file. So do names of source files,
    stack traces and unused weights. A ConfigError says that the packages are missing, or why it cannot be exported.

    Args:
        module: takes and gives tensors whose first dimension is the batch.
        examples: one tensor for each input, with a batch of at least 2.
        inputs: names of the inputs.
        output: name of the output.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the export needs the package {error.name}; install sfumato[export]") from None
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    takes_star = getattr(module, "takes_star", False)
    try:
        with _quiet(), evaluating(module):
            program = torch.onnx.export(
                module,
                tuple(examples),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=(dynamic,) if takes_star else dynamic,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has many types, and all of them mean this
        reason = first_line(error)
        raise ConfigError(
            f"torch cannot export this network to ONNX ({reason[:300]}); its forward must not depend on the values or "
            "the number of the images"
        ) from error
    assert program is not None
    model = program.model_proto
    fold_batch_norms(model)
    _strip(model)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def fold_batch_norms(model: "onnx.ModelProto") -> None:
    """Turn what batch normalisations are left into `x scale + shift`, in place.

    `scale = gamma / sqrt(variance + epsilon)`, `shift = beta - mean scale`, in float64: of the running statistics only
    these two combinations remain. The exporter itself has folded those that follow a convolution. A ConfigError says
    that one is in training mode, or that its numbers are not constants.
    """
    import onnx
    from onnx import numpy_helper, shape_inference

    graph = model.graph
    if not any(node.op_type == "BatchNormalization" for node in graph.node):
        return
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    known = shape_inference.infer_shapes(model).graph
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in (*known.value_info, *known.input, *known.output)}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if settings.get("training_mode", 0) or len(node.output) > 1 or not set(node.input[1:]) <= set(constants):
            raise ConfigError("a batch normalisation cannot be folded; export the network in evaluation mode")
        gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:])
        scale = gamma / np.sqrt(variance + settings.get("epsilon", 1e-5))
        shape = (-1, *(1,) * (ranks.get(node.input[0], ranks.get(node.output[0], 4)) - 2))
        names = []
        for part, value in (("scale", scale), ("shift", beta - mean * scale)):
            names.append(f"{node.output[0]}.{part}")
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32).reshape(shape), names[-1]))
        inner = f"{node.output[0]}.scaled"
        nodes.append(onnx.helper.make_node("Mul", [node.input[0], names[0]], [inner]))
        nodes.append(onnx.helper.make_node("Add", [inner, names[1]], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(nodes)


def output_range(data: bytes) -> tuple[float, float] | None:
    """The smallest and the largest value that an exported network can give, by the operations that end it; else None.

    Read off the file that is shipped, where every operation stands in the order in which it is executed.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(data).graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}

    @cache
    def limits(name: str) -> tuple[float, float] | None:
        node = made_by.get(name)
        kind = "" if node is None else node.op_type
        if node is None or kind.lower() in BOUNDED:
            return BOUNDED.get(kind.lower())
        if kind == "Cast" and node.input[0] in made_by and made_by[node.input[0]].op_type in _TESTS:
            return 0.0, 1.0
        if kind == "Clip" and len(node.input) == 3 and set(node.input[1:]) <= set(constants):
            return float(constants[node.input[1]]), float(constants[node.input[2]])
        found = limits(node.input[0]) if kind in _KEEPING else None
        if found is None or kind not in ("AveragePool", "Mul"):
            return found
        factor = limits(node.input[1]) if kind == "Mul" else (0.0, 1.0)  # padding and masks bring zeros
        return None if factor is None or factor[0] < 0 or factor[1] > 1 else (min(found[0], 0.0), max(found[1], 0.0))

    found = limits(graph.output[0].name)
    return found if found is not None and np.isfinite(found).all() and found[0] < found[1] else None


def _strip(model: "onnx.ModelProto") -> None:
    """Take out unused weights, source lines and names of the builder's machine; call the batch `batch`."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    del model.metadata_props[:]
    del graph.metadata_props[:]
    for field in ("doc_string", "domain", "model_version"):
        model.ClearField(field)
    graph.ClearField("doc_string")
    graph.name = "sfumato"
    for one in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        one.ClearField("doc_string")
        del one.metadata_props[:]
    for node in graph.node:
        node.ClearField("overload")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
    for one in (*graph.input, *graph.output):
        one.type.tensor_type.shape.dim[0].Clear()
        one.type.tensor_type.shape.dim[0].dim_param = _BATCH


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that nobody needs here, in its log and on both outputs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
