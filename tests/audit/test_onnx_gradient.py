"""Slopes of ONNX graphs: values are ONNX Runtime's, slopes are its differences."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sfumato.attacks import Observer
from sfumato.audit import load_target
from sfumato.audit.onnx_gradient import _OPERATORS, OnnxGradient
from sfumato.data import ImageSet


def weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*values):
    return np.array(values, dtype=np.int64)


def written(path, *nodes, inputs=(2, 4, 6, 6), opset=18):
    """A file of these nodes, (operator, constants, settings) each, one behind the other."""
    made, constants, last = [], [], "x"
    for i, (operator, given, settings) in enumerate(nodes):
        names = [f"c{i}_{j}" for j in range(len(given))]
        constants += [numpy_helper.from_array(value, name) for name, value in zip(names, given, strict=True)]
        outputs = [f"y{i}", *(["rest"] if operator == "Split" else [])]
        made.append(helper.make_node(operator, [last, *names], outputs, **settings))
        last = outputs[0]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *inputs[1:]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


OPERATORS = [
    ("Conv", [weights(6, 2, 3, 3), weights(6)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 2]}),
    ("Conv", [weights(5, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [weights(5, 4, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    ("BatchNormalization", [weights(4), weights(4), weights(4), np.ones(4, np.float32)], {"epsilon": 0.1}),
    ("LayerNormalization", [weights(6), weights(6)], {"axis": -1}),
    ("Relu", [], {}),
    ("LeakyRelu", [], {"alpha": 0.3}),
    ("PRelu", [weights(4, 1, 1)], {}),
    ("Elu", [], {"alpha": 0.7}),
    ("Gelu", [], {"approximate": "tanh"}),
    ("Sigmoid", [], {}),
    ("HardSigmoid", [], {"alpha": 0.1}),
    ("HardSwish", [], {}),
    ("Mish", [], {}),
    ("Softplus", [], {}),
    ("Tanh", [], {}),
    ("Erf", [], {}),
    ("Exp", [], {}),
    ("Abs", [], {}),
    ("Neg", [], {}),
    ("Sin", [], {}),
    ("Cos", [], {}),
    ("Softmax", [], {"axis": 1}),
    ("Clip", [np.float32(-0.5), np.float32(0.8)], {}),
    ("Add", [weights(6)], {}),
    ("Sub", [weights(4, 1, 1)], {}),
    ("Mul", [weights(6)], {}),
    ("Div", [np.float32(3.0)], {}),
    ("Pow", [np.float32(2.0)], {}),
    ("Min", [weights(6)], {}),
    ("Max", [weights(6)], {}),
    ("MatMul", [weights(6, 3)], {}),
    ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
    ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", [], {}),
    ("ReduceMean", [whole(2, 3)], {"keepdims": 0}),
    ("Flatten", [], {"axis": 2}),
    ("Reshape", [whole(0, -1, 3)], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Split", [whole(1, 3)], {"axis": 1}),
    ("Slice", [whole(1, -5), whole(6, -1), whole(2, 3), whole(2, 1)], {}),
    ("Unsqueeze", [whole(1, -1)], {}),
    ("Gather", [whole(2, 0)], {"axis": 1}),
    ("Identity", [], {}),
    ("Sqrt", [], {}),
    ("Log", [], {}),
    ("Reciprocal", [], {}),
    ("Concat", [weights(2, 1, 6, 6)], {"axis": 1}),
    ("Squeeze", [whole(1)], {}),
    ("Dropout", [], {}),
]  # fmt: skip


@pytest.mark.parametrize("node", OPERATORS, ids=lambda node: node[0])
def test_every_operator_has_the_values_and_slopes_of_the_runtime(tmp_path, node):
    shape = (2, 1 if node[0] == "Squeeze" else 4, 6, 6)
    path = written(tmp_path / "one.onnx", node, inputs=shape, opset=20 if node[0] == "Gelu" else 18)
    session, twin = onnxruntime.InferenceSession(path), OnnxGradient(path)
    x = weights(*shape, seed=1)
    if node[0] in ("Sqrt", "Log", "Reciprocal"):
        x = np.abs(x) + 0.2
    expected = session.run(None, {"x": x})[0]
    leaf = torch.from_numpy(x).requires_grad_()
    made = twin(leaf)
    np.testing.assert_allclose(made.detach(), expected, rtol=1e-4, atol=1e-5)
    direction, step = weights(*x.shape, seed=2), 1e-3
    weight = torch.from_numpy(weights(*expected.shape, seed=3))
    (slope,) = torch.autograd.grad((made * weight).sum(), leaf)
    up, down = (session.run(None, {"x": x + sign * step * direction})[0] for sign in (1, -1))
    along = float(((up - down) * weight.numpy()).sum()) / (2 * step)
    spread = float(slope.norm()) * float(np.linalg.norm(direction)) / slope.numel() ** 0.5
    assert float((slope.numpy() * direction).sum()) == pytest.approx(along, abs=0.05 * spread + 1e-3)


def test_old_forms_of_operators_that_took_settings_for_inputs(tmp_path):
    nodes = [
        ("Clip", [], {"min": -0.5, "max": 0.5}),
        ("Slice", [], {"starts": [1], "ends": [5], "axes": [3]}),
        ("ReduceMean", [], {"axes": [2]}),
        ("Squeeze", [], {"axes": [2]}),
        ("Unsqueeze", [], {"axes": [1]}),
        ("Flatten", [], {}),
        ("Gemm", [weights(3, 16), weights(3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ]
    path = written(tmp_path / "old.onnx", *nodes, opset=9)
    x = torch.from_numpy(weights(2, 4, 6, 6))
    value = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})[0])
    assert OnnxGradient(path).agrees(x, value)


def test_a_shape_that_is_computed_from_the_image(tmp_path):
    """Two branches: as exporters write `x.reshape(len(x), -1)`."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sides"]),
        helper.make_node("Gather", ["sides", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    constants = [numpy_helper.from_array(whole(0), "zero"), numpy_helper.from_array(whole(-1), "rest")]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name, sides in (("x", "nchw"), ("y", "nd"))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "shape.onnx")
    x = torch.from_numpy(weights(2, 4, 3, 3))
    assert torch.equal(OnnxGradient(tmp_path / "shape.onnx")(x), x.flatten(1))


def test_every_operator_is_tried_here():
    assert set(_OPERATORS) - {name for name, _, _ in OPERATORS} == {"Gemm", "Shape"}  # in tests of their own


def test_what_has_no_slope_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="Round"):
        OnnxGradient(written(tmp_path / "round.onnx", ("Round", [], {})))


def white_box(path):
    images = ImageSet(torch.randint(0, 256, (4, 1, 4, 4)).byte(), torch.zeros(4, dtype=torch.int64), ("one",))
    return Observer(load_target(str(path)).model, images).white_box


def test_the_attacker_looks_into_an_onnx_encoder_and_its_values_stay_those_of_the_runtime(tmp_path):
    kernel = weights(3, 1, 3, 3)
    path = written(tmp_path / "conv.onnx", ("Conv", [kernel], {}), inputs=(1, 1, 4, 4))
    assert white_box(path)
    model, x = load_target(str(path)).model, torch.rand(2, 1, 4, 4, requires_grad=True)
    z_hat = model.features(x)
    assert np.array_equal(z_hat.detach(), onnxruntime.InferenceSession(path).run(None, {"x": x.detach().numpy()})[0])
    (slope,) = torch.autograd.grad(z_hat.square().sum(), x)
    (exact,) = torch.autograd.grad(torch.conv2d(x, torch.from_numpy(kernel)).square().sum(), x)
    torch.testing.assert_close(slope, exact)


def test_a_graph_that_is_computed_differently_passes_no_gradient(tmp_path):
    """The operator's default as of another version, say."""
    path = written(
        tmp_path / "softmax.onnx", ("Softmax", [], {}), inputs=(1, 1, 4, 4), opset=11
    )  # over all that follows
    assert not white_box(path)
    assert not white_box(written(tmp_path / "round.onnx", ("Round", [], {}), inputs=(1, 1, 4, 4)))
