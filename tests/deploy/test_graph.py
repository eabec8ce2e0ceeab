"""What a network of a bundle may hold: what our exporter writes, and nothing else, wherever it hides."""

import contextlib

import numpy as np
import onnx
import pytest
import torch
from edge_support import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sfumato.deploy.graph import _OPERATORS, check_graph
from sfumato.deploy.halves import fold_batch_norms, output_range, to_onnx
from sfumato.errors import BundleError, ConfigError

RANDOM = {
    "RandomNormal": ([], {"shape": [2]}),
    "RandomNormalLike": (["x"], {}),
    "RandomUniform": ([], {"shape": [2]}),
    "RandomUniformLike": (["x"], {}),
    "Bernoulli": (["x"], {}),
    "Multinomial": (["x"], {"sample_size": 1}),
    "Dropout": (["x", "ratio", "training"], {}),
}


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])


def graph(nodes, name="g", inputs=("x",), outputs=("y",), **kwargs) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [value(one) for one in inputs], [value(one) for one in outputs], **kwargs)


def model(nodes, functions=(), **kwargs) -> bytes:
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(one.domain, 1) for one in functions)]
    return helper.make_model(graph(nodes, **kwargs), opset_imports=opsets, functions=functions).SerializeToString()


def random_node(operator: str) -> onnx.NodeProto:
    inputs, attributes = RANDOM[operator]
    return helper.make_node(operator, inputs, ["y"], **attributes)


def in_the_graph(node):
    return model([node])


def in_a_branch(node):
    branch = graph([node], "branch", inputs=())
    return model([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])


def in_a_branch_of_a_loop(node):
    inner = graph([node], "inner", inputs=())
    body = graph([helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], "body", inputs=())
    return model([helper.make_node("Loop", ["m", "c"], ["y"], body=body)])


def in_a_function(node):
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("ours", "Harmless", ["x"], ["y"], [node], opset)
    return model([helper.make_node("Harmless", ["x"], ["y"], domain="ours")], [function])


def in_a_branch_in_a_function(node):
    branch = graph([node], "branch", inputs=())
    call = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("ours", "Harmless", ["x"], ["y"], [call], [helper.make_opsetid("", 18)])
    return model([helper.make_node("Harmless", ["x"], ["y"], domain="ours")], [function])


def in_the_other_name_of_the_standard(node):
    node.domain = "ai.onnx"
    return model([node])


def among_initialisers_of_training(node):
    whole = onnx.load_from_string(model([RELU]))
    whole.training_info.add().initialization.CopyFrom(graph([node], "init"))
    return whole.SerializeToString()


def in_a_second_graph(node):
    """Protocol Buffers merges a message that comes twice: its nodes are appended."""
    return model([RELU]) + onnx.ModelProto(graph=onnx.GraphProto(node=[node])).SerializeToString()


PLACES = [
    in_the_graph,
    in_a_branch,
    in_a_branch_of_a_loop,
    in_a_function,
    in_a_branch_in_a_function,
    in_the_other_name_of_the_standard,
    among_initialisers_of_training,
    in_a_second_graph,
]
RELU = helper.make_node("Relu", ["x"], ["y"])
SEEN = (in_the_graph, in_the_other_name_of_the_standard, in_a_second_graph)


@pytest.mark.parametrize("operator", RANDOM)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_random_operator_is_refused_wherever_it_is(place, operator):
    said = rf"draws random numbers itself \(operator {operator}\)" if place in SEEN else "is refused"
    with pytest.raises(BundleError, match=said):
        check_graph(place(random_node(operator)), "encoder.onnx")


def test_nothing_random_is_on_the_list_and_all_of_it_is_standard():
    standard = {one.name for one in onnx.defs.get_all_schemas() if one.domain == ""}
    assert standard >= _OPERATORS
    assert not _OPERATORS & {*RANDOM, "If", "Loop", "Scan", "BatchNormalization", "SequenceAt", "StringConcat"}


def altered(change):
    whole = onnx.load_from_string(model([RELU], initializer=[numpy_helper.from_array(np.zeros(2, np.float32), "w")]))
    change(whole)
    return whole.SerializeToString()


def sparse(whole):
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    index = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    whole.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [2]))


def external(whole):
    whole.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = whole.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


FOREIGN = {
    "a function": lambda whole: whole.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [RELU], [helper.make_opsetid("", 18)])
    ),
    "training": lambda whole: whole.training_info.add(),
    "a sparse tensor": sparse,
    "weights in another file": external,
    "another domain": lambda whole: setattr(whole.graph.node[0], "domain", "com.microsoft"),
    "another domain's operators": lambda whole: whole.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
    "an operator that nobody writes": lambda whole: setattr(whole.graph.node[0], "op_type", "Optional"),
    "no operator": lambda whole: whole.graph.node[0].ClearField("op_type"),
    "metadata": lambda whole: helper.set_model_props(whole, {"a": "b"}),
    "a type that is no tensor": lambda whole: whole.graph.input[0].type.sequence_type.elem_type.tensor_type.Clear(),
    "a reference to a function's attribute": lambda whole: whole.graph.node[0].attribute.add(ref_attr_name="a"),
    "quantisation": lambda whole: whole.graph.quantization_annotation.add(tensor_name="x"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_the_exporter_never_writes_is_refused(name):
    check_graph(altered(lambda whole: None), "e")
    with pytest.raises(BundleError, match="e is refused: .*; export the run again"):
        check_graph(altered(FOREIGN[name]), "e")


@given(st.integers(1, 2**29 - 1), st.sampled_from([0, 1, 2, 5]))
def test_unknown_fields_are_refused(number, kind):
    """A field that no onnx.proto has: another reader may know it."""
    tag, rest = number << 3 | kind, number
    data = bytearray()
    while tag > 0x7F:
        data.append(tag & 0x7F | 0x80)
        tag >>= 7
    data.append(tag)
    data += {0: b"\x01", 1: bytes(8), 2: b"\x00", 5: bytes(4)}[kind]
    known = (rest, kind) in {(1, 0), (2, 2), (3, 2), (7, 2), (8, 2)}
    whole = model([RELU]) + bytes(data)
    if known:
        check_graph(whole, "e")
    else:
        with pytest.raises(BundleError):
            check_graph(whole, "e")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00", b"\xff" * 40, bytes(1000), b"PK\x03\x04" + bytes(50)])
def test_what_is_no_onnx_file(data):
    with pytest.raises(BundleError, match="encoder.onnx is"):
        check_graph(data, "encoder.onnx")


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_damaged_files_are_refused_or_read_and_never_crash(noise, at, cut):
    whole = in_a_branch_in_a_function(helper.make_node("Relu", ["x"], ["y"]))
    damaged = whole[:at] + noise + whole[at:]
    for data in (damaged, whole[:cut], noise):
        with contextlib.suppress(BundleError):
            check_graph(data, "e")


def test_a_bundle_by_onnx_itself_passes(tmp_path):
    for name in ("encoder.onnx", "decoder.onnx"):
        check_graph((make_bundle(tmp_path) / name).read_bytes(), name)


class _Usual(torch.nn.Module):
    """What networks are made of today: attention, norms, gates, chunks, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.attend = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, activation="gelu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.silu(self.norm(self.conv(x)))
        x = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        left, right = self.attend(x).chunk(2, dim=1)
        return torch.sigmoid(torch.cat([left, right * 2], 1).mean(1))


def test_what_networks_are_made_of_passes():
    data = to_onnx(_Usual().eval(), (torch.rand(2, 3, 6, 6),), ("image",), "feature")
    check_graph(data, "encoder.onnx")
    assert output_range(data) == (0.0, 1.0)


ENDS = {
    "sigmoid": (torch.sigmoid, (0.0, 1.0)),
    "tanh, flattened": (lambda x: torch.tanh(x).flatten(1), (-1.0, 1.0)),
    "clamp": (lambda x: x.clamp(-2.0, 0.5), (-2.0, 0.5)),
    "relu6": (torch.nn.functional.relu6, (0.0, 6.0)),
    "pooled": (lambda x: torch.nn.functional.max_pool2d(torch.sigmoid(x), 2), (0.0, 1.0)),
    "a mask": (lambda x: torch.tanh(x) * (x > 0), (-1.0, 1.0)),
    "relu": (torch.relu, None),
    "a gate that is a sigmoid": (lambda x: x * torch.sigmoid(x), None),
    "a shift after it": (lambda x: torch.sigmoid(x) + x, None),
    "half a clamp": (lambda x: x.clamp(min=0.5), None),
}


class _Ends(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(end(x) for end, _ in ENDS.values())


@pytest.fixture(scope="module")
def ends() -> onnx.ModelProto:
    """One network with all the ends, by torch's exporter as `to_onnx` calls it."""
    program = torch.onnx.export(
        _Ends().eval(), (torch.rand(2, 3, 4, 4),), output_names=list(ENDS), dynamo=True, optimize=True, verbose=False
    )
    return program.model_proto


@pytest.mark.parametrize("name", ENDS)
def test_the_range_is_that_of_the_operations_at_the_end(ends, name):
    one = onnx.ModelProto()
    one.CopyFrom(ends)
    del one.graph.output[:]
    one.graph.output.extend(output for output in ends.graph.output if output.name == name)
    assert output_range(one.SerializeToString()) == ENDS[name][1]


@pytest.mark.parametrize("operator", ["Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Softsign"])
def test_a_bounded_operator_stays_in_its_range_and_fills_it(operator):
    import onnxruntime

    data = model([helper.make_node(operator, ["x"], ["y"])])
    x = np.array([[-1e4, 1e4], [1e4, -1e4], [0.0, 0.5]], np.float32)
    (y,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    low, high = output_range(data)
    assert low <= y.min() < low + 1e-3
    assert high - 1e-3 < y.max() <= high


class _NormFirst(torch.nn.Module):
    """A batch normalisation that no convolution precedes, and one of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.rows = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm1d(12)
        for norm in (self.maps, self.rows):
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.uniform_(norm.bias, -1, 1)
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows(torch.relu(self.maps(x)).flatten(1))


def test_batch_norms_are_folded_where_there_is_no_convolution():
    import onnxruntime

    torch.manual_seed(0)
    module = _NormFirst().eval()
    x = torch.randn(5, 3, 2, 2)
    data = to_onnx(module, (torch.randn(2, 3, 2, 2),), ("x",), "y")
    names = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert "BatchNormalization" not in names
    statistics = {tuple(one.flatten().tolist()) for norm in (module.maps, module.rows) for one in norm.buffers()}
    kept = {tuple(numpy_helper.to_array(one).ravel().tolist()) for one in onnx.load_from_string(data).graph.initializer}
    assert not statistics & kept
    (y,) = onnxruntime.InferenceSession(data).run(None, {"x": x.numpy()})
    assert np.allclose(y, module(x).detach().numpy(), atol=1e-5)


def test_a_batch_norm_in_training_mode_is_not_folded():
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "p", "q"], training_mode=1)
    whole = onnx.load_from_string(model([node]))
    with pytest.raises(ConfigError, match="evaluation mode"):
        fold_batch_norms(whole)
