"""What is found in ONNX files without onnx is what onnx finds; nothing random passes, wherever it hides."""

import contextlib

import numpy as np
import onnx
import pytest
import torch
from edge_support import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sfumato.deploy import protobuf
from sfumato.deploy.graph import check_graph, operators
from sfumato.deploy.onnxfile import fold_batch_norms, to_onnx
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
    whole = onnx.load_from_string(model([helper.make_node("Relu", ["x"], ["y"])]))
    whole.training_info.add().initialization.CopyFrom(graph([node], "init"))
    return whole.SerializeToString()


PLACES = [
    in_the_graph,
    in_a_branch,
    in_a_branch_of_a_loop,
    in_a_function,
    in_a_branch_in_a_function,
    in_the_other_name_of_the_standard,
    among_initialisers_of_training,
]


@pytest.mark.parametrize("operator", RANDOM)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_random_operator_is_refused_wherever_it_is(place, operator):
    with pytest.raises(BundleError, match=rf"draws random numbers itself \(operator {operator}\)"):
        check_graph(place(random_node(operator)), "encoder.onnx")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_an_ordinary_operator_is_accepted_in_the_same_places(place):
    check_graph(place(helper.make_node("Relu", ["x"], ["y"])), "encoder.onnx")


def test_an_operator_of_another_domain_and_a_function_in_a_standard_operators_name():
    with pytest.raises(BundleError, match="com.microsoft::BitmaskDropout, which is not a standard operator"):
        check_graph(model([helper.make_node("BitmaskDropout", ["x"], ["y"], domain="com.microsoft")]), "e")
    relu = helper.make_node("Relu", ["x"], ["y"])
    function = helper.make_function("", "Dropout", ["x"], ["y"], [relu], [helper.make_opsetid("", 18)])
    with pytest.raises(BundleError, match="operator Dropout"):
        check_graph(model([helper.make_node("Dropout", ["x"], ["y"])], [function]), "e")


def test_weights_in_another_file_are_refused():
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    add = helper.make_node("Add", ["x", "w"], ["y"])
    with pytest.raises(BundleError, match="another file, which no hash covers"):
        check_graph(model([add], initializer=[tensor]), "e")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    with pytest.raises(BundleError, match="another file"):
        check_graph(model([constant]), "e")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00", b"\xff" * 40, bytes(1000), b"PK\x03\x04" + bytes(50)])
def test_what_is_no_onnx_file(data):
    with pytest.raises(BundleError, match="no ONNX file"):
        check_graph(data, "encoder.onnx")


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_damaged_files_are_refused_or_read_and_never_crash(noise, at, cut):
    whole = in_a_branch_in_a_function(helper.make_node("Relu", ["x"], ["y"]))
    damaged = whole[:at] + noise + whole[at:]
    for data in (damaged, whole[:cut], noise):
        with contextlib.suppress(BundleError):
            check_graph(data, "e")


def theirs(nodes) -> list[tuple[str, str]]:
    """All operators, by onnx's own reading."""
    found = []
    for node in nodes:
        found.append((node.op_type, node.domain))
        for one in node.attribute:
            for inner in [one.g, *one.graphs]:
                found += theirs(inner.node)
    return found


def test_the_operators_are_those_that_onnx_finds(tmp_path):
    data = (make_bundle(tmp_path) / "encoder.onnx").read_bytes()
    for one in (data, *(place(random_node("RandomNormalLike")) for place in PLACES[:-1])):
        whole = onnx.load_from_string(one)
        wanted = theirs(whole.graph.node) + [found for part in whole.functions for found in theirs(part.node)]
        assert sorted((found.name, found.domain) for found in operators(one)) == sorted(wanted)


@given(st.integers(0, 2**63 - 1), st.binary(max_size=300))
def test_protocol_buffers_there_and_back(number, data):
    """Against the real library: a TensorProto with an int64 and raw data."""
    tensor = TensorProto(dims=[number, 1], raw_data=data)
    read = {name: found for name, found in protobuf.fields(tensor.SerializeToString()) if name == 9}
    assert bytes(read.get(9, b"")) == data
    written = protobuf.message(
        protobuf.field(1, protobuf.varint(number) + protobuf.varint(1)), protobuf.field(9, data), protobuf.number(2, 1)
    )
    back = TensorProto.FromString(written)
    assert (list(back.dims), back.raw_data, back.data_type) == ([number, 1], data, 1)
    packed = next(found for name, found in protobuf.fields(written) if name == 1)
    assert protobuf.numbers(packed) == [number, 1]


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
