"""What serving engines of other people find in a bundle, read by their own schemas."""

import os
import re

import pytest
import yaml
from edge_support import CLASSES, FEATURE, make_bundle

from sfumato.deploy import Manifest
from sfumato.deploy.engines import cluster_name, write_engines


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("bundle"))
    write_engines(Manifest.load(folder), folder)
    return folder


def test_the_triton_repository(bundle):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    folder = bundle / "triton" / "small"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 64)
    (given,), (answer,) = config.input, config.output
    assert (given.name, given.data_type, list(given.dims)) == ("feature", model_config_pb2.TYPE_UINT8, [*FEATURE])
    assert (answer.name, answer.data_type, list(answer.dims)) == ("logits", model_config_pb2.TYPE_FP32, [CLASSES])
    assert (folder / answer.label_filename).read_text().splitlines() == list(Manifest.load(bundle).classes)
    assert os.path.samefile(folder / "1" / "model.onnx", bundle / "decoder.onnx")


def test_the_kserve_manifest(bundle):
    service = yaml.safe_load((bundle / "kserve.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["metadata"] == {"name": "small"}
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("triton", "v2")


@pytest.mark.parametrize("name", ["7_Segments.v2", "A" * 128, "0", "x-", "On", "1e3", "9" * 128, "a._-" * 20])
def test_names_for_a_cluster(name):
    """The rule of Kubernetes for the names of services, RFC 1035, with room for what KServe appends."""
    found = cluster_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", f"{found}-predictor")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
