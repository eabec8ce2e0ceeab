"""The Open Inference Protocol over gRPC: every call, every error, the stock client."""

import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_support import CLASSES, DIM, by_onnxruntime, features, infer, logits_of, make_bundle, metric, running
from tritonclient.grpc import service_pb2 as pb  # the protocol's messages as another project generated them

import sfumato


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "tiny": make_bundle(folder / "tiny"),
        "tiny 2": make_bundle(folder / "tiny-2", version="2", seed=2),
        "levels": make_bundle(folder / "levels", "levels", bits=6),
        "top": make_bundle(folder / "top", "top", reveal="top_k", top_k=2),
    }


@pytest.fixture(scope="module")
def server(bundles):
    with running(*bundles.values(), max_request_bytes=20_000, client_timeout=0.5) as one:
        yield one


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as one:
        yield one


@pytest.fixture(scope="module")
def triton(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


def call(channel, name, request, reply=None):
    """One unary call; `request` may be bytes."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    answer = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(data, timeout=20)
    return answer if reply is None else reply.FromString(answer)


def refused(channel, name, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, name, request)
    return caught.value.code(), caught.value.details()


def asked(feature=None, *, raw=True, model="tiny", **changes):
    feature = features() if feature is None else feature
    request = pb.ModelInferRequest(model_name=model)
    described = {
        "name": "feature",
        "datatype": "FP32" if feature.dtype.kind == "f" else "UINT8",
        "shape": feature.shape,
    }
    given = request.inputs.add(**(described | changes))
    if raw:
        request.raw_input_contents.append(feature.tobytes())
    elif feature.dtype.kind == "f":
        given.contents.fp32_contents.extend(feature.ravel().tolist())
    else:
        given.contents.uint_contents.extend(feature.ravel().tolist())
    return request


class TestCalls:
    def test_health(self, channel):
        assert call(channel, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
        assert call(channel, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        for version in ("", "1"):
            assert call(
                channel, "ModelReady", pb.ModelReadyRequest(name="tiny", version=version), pb.ModelReadyResponse
            ).ready

    def test_metadata(self, channel):
        answer = call(channel, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        assert (answer.name, answer.version) == ("sfumato", sfumato.__version__)
        answer = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="top"), pb.ModelMetadataResponse)
        assert (answer.name, list(answer.versions), answer.platform) == ("top", ["1"], "onnxruntime_onnx")
        tensors = [(part.name, part.datatype, list(part.shape)) for part in (*answer.inputs, *answer.outputs)]
        assert tensors == [
            ("feature", "FP32", [-1, DIM]),
            ("indices", "INT64", [-1, 2]),
            ("probabilities", "FP32", [-1, 2]),
        ]

    @pytest.mark.parametrize("rows", [1, 6])
    def test_raw_and_typed_contents_are_onnx_runtimes_bit_for_bit(self, channel, bundles, rows):
        feature = features(rows)
        expected = by_onnxruntime(bundles["tiny 2"], feature)
        request = asked(feature)
        request.id = "abc"
        answer = call(channel, "ModelInfer", request, pb.ModelInferResponse)
        assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "2", "abc")
        assert list(answer.outputs[0].shape) == [rows, CLASSES]
        assert list(answer.raw_output_contents) == [expected.astype("<f4").tobytes()]
        answer = call(channel, "ModelInfer", asked(feature, raw=False), pb.ModelInferResponse)
        assert not answer.raw_output_contents
        assert list(answer.outputs[0].contents.fp32_contents) == expected.ravel().tolist()

    def test_levels_and_top_k(self, channel, bundles):
        levels = np.random.default_rng(0).integers(0, 64, (2, DIM)).astype(np.uint8)
        expected = by_onnxruntime(bundles["levels"], levels).astype("<f4").tobytes()
        answer = call(channel, "ModelInfer", asked(levels, model="levels"), pb.ModelInferResponse)
        assert list(answer.raw_output_contents) == [expected]
        answer = call(channel, "ModelInfer", asked(levels, model="levels", raw=False), pb.ModelInferResponse)
        assert np.array(answer.outputs[0].contents.fp32_contents, "<f4").tobytes() == expected
        answer = call(channel, "ModelInfer", asked(model="top", raw=False), pb.ModelInferResponse)
        order = np.argsort(-by_onnxruntime(bundles["top"], features())[0])[:2]
        assert list(answer.outputs[0].contents.int64_contents) == order.tolist()

    def test_rest_and_grpc_agree(self, server, channel):
        feature = features(3)
        answer = call(channel, "ModelInfer", asked(feature), pb.ModelInferResponse)
        assert logits_of(infer(server.rest, feature)[2]).tobytes() == answer.raw_output_contents[0]

    def test_metrics(self, server, channel):
        before = metric(server.rest, "sfumato_requests_total", 'transport="grpc"', 'status="OK"')
        call(channel, "ModelInfer", asked())
        refused(channel, "ModelInfer", asked(model="none"))
        assert metric(server.rest, "sfumato_requests_total", 'transport="grpc"', 'status="OK"') == before + 1
        assert metric(server.rest, "sfumato_requests_total", 'transport="grpc"', 'status="NOT_FOUND"') >= 1

    def test_the_stock_client(self, triton, bundles):
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("tiny")
        assert triton.get_server_metadata().name == "sfumato"
        assert triton.get_model_metadata("tiny").inputs[0].name == "feature"
        feature = features(4)
        given = tritonclient.grpc.InferInput("feature", list(feature.shape), "FP32")
        given.set_data_from_numpy(feature)
        wanted = tritonclient.grpc.InferRequestedOutput("logits")
        for outputs in (None, [wanted]):
            result = triton.infer("tiny", [given], model_version="1", outputs=outputs, request_id="7", timeout=10**6)
            np.testing.assert_array_equal(result.as_numpy("logits"), by_onnxruntime(bundles["tiny"], feature))
            assert result.get_response().id == "7"


def _with(**fields):
    request = asked()
    for name, value in fields.items():
        if isinstance(value, list):
            request.ClearField(name)
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    return request


def _timeout(**choice):
    request = asked()
    request.parameters["timeout"].CopyFrom(pb.InferParameter(**choice))
    return request


def _both():
    request = asked()
    request.inputs[0].contents.fp32_contents.append(1.0)
    return request


def _contents(**contents):
    request = asked(raw=False)
    request.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


REQUESTED = pb.ModelInferRequest.InferRequestedOutputTensor
NAN = features()
NAN[0, 0] = np.nan
BAD = {
    "no message of the protocol": (b"\xff\xff\xff", "not one of the protocol"),
    "no input": (_with(inputs=[]), "one input; the request has 0"),
    "two inputs": (_with(inputs=list(asked().inputs) * 2), "one input; the request has 2"),
    "other name": (asked(name="x"), "one input, 'feature'"),
    "other type": (asked(datatype="FP64"), "datatype FP32"),
    "other shape": (asked(shape=[1, 9]), "shape [-1, 8]"),
    "no rows": (asked(shape=[0, 8]), "1 to 256 rows"),
    "too many rows": (asked(shape=[2**40, 8]), "1 to 256 rows"),
    "too few bytes": (_with(raw_input_contents=[b"123"]), "needs 32 bytes"),
    "two raw contents": (_with(raw_input_contents=[features().tobytes()] * 2), "2 raw_input_contents"),
    "both kinds": (_both(), "both contents and raw"),
    "values of another type": (_contents(int_contents=[1] * 8), "belong into fp32_contents"),
    "too few values": (_contents(fp32_contents=[1.0] * 7), "needs 8 values"),
    "nothing": (asked(raw=False, name="feature", shape=[2, 8]), "needs 16 values"),
    "NaN": (asked(NAN), "not finite"),
    "typed NaN": (asked(NAN, raw=False), "not finite"),
    "level beyond the last": (asked(np.full((1, 8), 64, np.uint8), model="levels"), "last level 63"),
    "level beyond the type": (asked(np.full((1, 8), 300, np.uint16), model="levels", raw=False), "no UINT8 number"),
    "unknown output": (_with(outputs=[REQUESTED(name="x")]), "outputs are logits"),
    "timeout of nothing": (_timeout(int64_param=0), "'timeout'"),
    "timeout a text": (_timeout(string_param="1"), "'timeout'"),
    "timeout unset": (_timeout(), "'timeout'"),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("case", BAD)
    def test_bad_requests_get_a_sentence(self, channel, case):
        request, sentence = BAD[case]
        code, details = refused(channel, "ModelInfer", request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in details

    @pytest.mark.parametrize(
        ("name", "request_"),
        [
            ("ModelReady", pb.ModelReadyRequest(name="none")),
            ("ModelReady", pb.ModelReadyRequest(name="tiny", version="7")),
            ("ModelMetadata", pb.ModelMetadataRequest(name="none")),
            ("ModelInfer", asked(model="none")),
            ("ModelInfer", _with(model_version="7")),
        ],
    )
    def test_unknown_models_and_versions(self, channel, name, request_):
        assert refused(channel, name, request_)[0] is grpc.StatusCode.NOT_FOUND

    def test_unknown_calls(self, channel):
        assert refused(channel, "ModelLoad", b"")[0] is grpc.StatusCode.UNIMPLEMENTED

    def test_too_large_a_message(self, channel):
        code, _ = refused(channel, "ModelInfer", asked(features(1000)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    def test_a_client_that_begins_and_stalls(self, server, channel):
        release = threading.Event()

        def never():
            release.wait(20)
            yield b""

        try:
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(never(), timeout=20)
        finally:
            release.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 0.5 seconds" in caught.value.details()
        assert call(channel, "ServerLive", b"", pb.ServerLiveResponse).live

    def test_a_call_without_a_message(self, channel):
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(iter(()), timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


NAMES = st.one_of(st.sampled_from(["tiny", "feature", "logits", "FP32", "UINT8", "1", ""]), st.text(max_size=8))
CONTENTS = st.builds(
    pb.InferTensorContents,
    fp32_contents=st.lists(st.floats(width=32), max_size=16),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=2),
)
PARAMETERS = st.dictionaries(
    st.one_of(st.just("timeout"), st.text(max_size=4)),
    st.one_of(
        st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(pb.InferParameter, string_param=st.text(max_size=4)),
        st.just(pb.InferParameter()),
    ),
    max_size=2,
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES,
    datatype=NAMES,
    shape=st.one_of(st.just([1, DIM]), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)),
    contents=CONTENTS,
)
OUTPUTS = st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=NAMES)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=NAMES,
    model_version=NAMES,
    id=NAMES,
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=2),
    outputs=st.lists(OUTPUTS, max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=40), max_size=2),
)
NEAR = st.builds(
    lambda values, rows, raw: asked(np.array(values * rows, np.float32).reshape(rows, -1), raw=raw),
    st.lists(st.floats(width=32), min_size=DIM, max_size=DIM)
    | st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=9),
    st.integers(1, 3),
    st.booleans(),
)
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a timeout of a few microseconds was drawn
}


def answered_or_refused(channel, request):
    """What the fuzz asks of every request: an answer, or a status that blames the client."""
    try:
        return call(channel, "ModelInfer", request, pb.ModelInferResponse)
    except grpc.RpcError as error:
        if error.code() not in EXPECTED:
            raise
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(request_=st.one_of(NEAR, REQUESTS, st.binary(max_size=60)))
def test_whatever_is_sent_is_answered_or_refused(channel, request_):
    answered_or_refused(channel, request_)
