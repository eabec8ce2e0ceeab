"""The two halves of a split model as they are exported: image to clean feature, and wire to logits, as ONNX files.

Their rows are compared with one another, and what was exported with PyTorch, at every export. A file is recorded,
folded, and stripped of what does not compute.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.deploy.graph import company_gap, session_of
from sfumato.deploy.manifest import DECODER, ENCODER, UNSET, Manifest, QuantizationSpec, UnsetType
from sfumato.deploy.release import quantise
from sfumato.errors import BundleError, ConfigError, first_line
from sfumato.split import Channel, SplitModel
from sfumato.split.ranges import BOUNDED
from sfumato.torch_utils import evaluating

if TYPE_CHECKING:
    import onnx

__all__ = [
    "DecoderHalf",
    "EncoderHalf",
    "Parity",
    "check_rows",
    "draw_inputs",
    "fold_batch_norms",
    "measure_parity",
    "output_range",
    "to_onnx",
]

TOLERANCE = 1e-5
_ROWS_TOLERANCE = 1e-4  # of the largest value; float32 rounds rows of different batches apart by some 1e-6
_BATCHES = (1, 2, 5)
_BATCH = "batch"

_TESTS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not"}
# Their values are some of those of their first input, averages of them, or smaller.
_KEEPING = {
    "AveragePool", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Mul",
    "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


class EncoderHalf(nn.Module):
    """`(image, *uniforms) -> feature`: encoder, transforms and masks. Clip, noise and levels are the device's doing.

    Where masks follow, the clip before each of them is part of the network, as `Channel.release` has it.
    """

    takes_star = True

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        for transform in model.channel.stochastic_transforms:
            if not hasattr(transform, "with_uniform"):
                raise ConfigError(
                    f"{type(transform).__name__} draws random numbers inside the network, which a device cannot do "
                    "safely; give it a method with_uniform(feature, uniform) that takes them as an argument"
                )
        channel = copy.deepcopy(model.channel).float().cpu()
        self.edge = copy.deepcopy(model.edge).float().cpu()
        self.masks = nn.ModuleList(channel.stochastic_transforms)
        self.bound = Channel(clip_norm=channel.clip_norm if len(self.masks) else None, transforms=channel.transforms)
        self.clip = Channel(clip_norm=channel.clip_norm)

    def forward(self, *inputs: Tensor) -> Tensor:
        image, *uniforms = inputs
        feature = self.bound.bound(self.edge(image))
        for index, (mask, uniform) in enumerate(zip(self.masks, uniforms, strict=True)):
            feature = mask.with_uniform(self.clip.bound(feature) if index else feature, uniform)  # type: ignore[operator]
        return feature


class DecoderHalf(nn.Module):
    """`feature -> logits`: level numbers to values, then the decoder; floats go straight to the decoder."""

    def __init__(self, model: SplitModel, levels: QuantizationSpec | None) -> None:
        super().__init__()
        self.cloud = copy.deepcopy(model.cloud).float().cpu()
        self.levels = levels

    def forward(self, feature: Tensor) -> Tensor:
        z = feature
        if self.levels is not None:
            z = feature.float() * self.levels.width + self.levels.low
        logits: Tensor = self.cloud(z)
        return logits


def draw_inputs(count: int, shape: Sequence[int], tokens: int | UnsetType, generator: torch.Generator) -> Tensor:
    """Random images (count, C, H, W) in [0, 1), or texts (count, L) of whole numbers below `tokens`."""
    if tokens is UNSET:
        return torch.rand((count, *shape), generator=generator)
    return torch.randint(tokens, (count, *shape), generator=generator)


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between PyTorch and ONNX Runtime, each divided by `max(1, largest value)`.

    Attributes:
        feature: of the clean feature.
        logits: of the logits, from equal features.
        images: on so many images, random ones included.
    """

    feature: float
    logits: float
    images: int


def check_rows(module: nn.Module, inputs: Sequence[Tensor], what: str) -> Tensor:
    """Compare a batch with its rows alone and with the batch in reverse order; give the batch's result.

    A device sends one image, a server puts strangers' requests together: a row must not depend on its company. A
    ConfigError says that they differ by more than 1e-4 of the largest value, or that the module fails on one row.
    """
    with evaluating(module):
        together: Tensor = module(*inputs)
        try:
            gap, largest = company_gap(_on_arrays(module), [part.numpy() for part in inputs])
        except Exception as error:  # whatever a network raises
            raise ConfigError(f"{what} cannot be computed for one image alone ({error}), as a device does") from error
    if not gap <= _ROWS_TOLERANCE * max(1e-3, largest):
        raise ConfigError(
            f"{what} of one image depends on the other images of its batch (it moves by {gap:.2g}), so it would differ "
            "on a device and between requests; look for an attention without batch_first=True, or a normalisation over "
            "the batch"
        )
    return together


def measure_parity(
    encoder: EncoderHalf,
    decoder: DecoderHalf,
    manifest: Manifest,
    encoder_bytes: bytes,
    decoder_bytes: bytes,
    images: Tensor | None,
    generator: torch.Generator,
) -> Parity:
    """Compare ONNX Runtime's batches with PyTorch's rows alone, on random images and on given ones (n, C, H, W).

    A BundleError says that a difference is above 1e-5, or that a result has another shape.
    """
    batches = [draw_inputs(size, manifest.input.shape, manifest.input.tokens, generator) for size in _BATCHES]
    if images is not None:
        batches += list(images.float().split(32))
    names = (manifest.input.name, *manifest.noise.uniforms)
    left, right = session_of(manifest, encoder_bytes, ENCODER), session_of(manifest, decoder_bytes, DECODER)
    worst = {"feature": 0.0, "logits": 0.0}
    with evaluating(encoder, decoder):
        for batch in batches:
            shape = (len(batch), *manifest.feature.shape)
            inputs = (batch, *(torch.rand(shape, generator=generator) for _ in manifest.noise.uniforms))
            noisy = (encoder(*inputs) + manifest.noise.std * torch.randn(shape, generator=generator)).numpy()
            wire = noisy if manifest.quantization is None else quantise(noisy, manifest.quantization)
            for name, half, session, keys, given in (
                ("feature", encoder, left, names, [part.numpy() for part in inputs]),
                ("logits", decoder, right, (manifest.feature.name,), [np.array(wire)]),
            ):
                exported = partial(_run, session, keys)
                gap, largest = company_gap(exported, given, _on_arrays(half))
                worst[name] = float(np.maximum(worst[name], gap / max(1.0, largest)))  # NaN stays
    for name, value in worst.items():
        if not value <= TOLERANCE:  # NaN is refused as well
            raise BundleError(
                f"the exported network differs from PyTorch's by {value:.2g} in the {name}, more than {TOLERANCE:g}; "
                "this network cannot be exported faithfully"
            )
    return Parity(worst["feature"], worst["logits"], sum(map(len, batches)))


def _run(session: Any, names: Sequence[str], *parts: Any) -> Any:
    return session.run(None, dict(zip(names, parts, strict=True)))[0]


def _on_arrays(module: nn.Module) -> Callable[..., Any]:
    return lambda *parts: module(*map(torch.tensor, parts)).numpy()


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
    model = _stripped(model)
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


def _stripped(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same without unused weights, source lines and names of the builder's machine; the batch is called `batch`."""
    from onnx.helper import make_graph, make_model, make_tensor_value_info

    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for one in (*graph.node, *graph.initializer, *attributes):
        for field in {"doc_string", "metadata_props", "overload"}.intersection(one.DESCRIPTOR.fields_by_name):
            one.ClearField(field)
    ends = []
    for one in (*graph.input, *graph.output):
        sides = [side.dim_value for side in one.type.tensor_type.shape.dim]
        ends.append(make_tensor_value_info(one.name, one.type.tensor_type.elem_type, [_BATCH, *sides[1:]]))
    weights = [one for one in graph.initializer if one.name in used]
    fresh = make_graph(graph.node, "sfumato", ends[: len(graph.input)], ends[len(graph.input) :], weights)
    same = {name: getattr(model, name) for name in ("functions", "ir_version", "producer_name", "producer_version")}
    return make_model(fresh, opset_imports=model.opset_import, **same)


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
