"""What serving engines of other people need beside the decoder: a Triton model repository, a KServe manifest."""

import os
import re
import shutil
from pathlib import Path

import yaml

from sfumato.deploy.manifest import DECODER, Manifest
from sfumato.files import write_text

__all__ = ["cluster_name", "write_engines"]

_LONGEST_NAME = 40  # KServe and Knative append words to it, and 63 letters are the limit of a host's name

_TRITON = """\
# Triton model repository of the decoder: tritonserver --model-repository=triton
{remark}name: "{name}"
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "{feature}" data_type: TYPE_{datatype} dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }} ]
version_policy {{ specific {{ versions: [ {version} ] }} }}
dynamic_batching {{
  max_queue_delay_microseconds: 500
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: 1000000
    max_queue_size: 512
  }}
}}
"""

_KSERVE = """\
# Serves the decoder with Triton in a cluster: kubectl apply -f kserve.yaml
# Copy the folder `triton` to your storage and put its address in the place of storageUri.
{remark}"""


def cluster_name(name: str) -> str:
    """A model's name as Kubernetes takes it: small letters, digits and dashes, beginning with a letter.

    >>> cluster_name("7_Segments.v2")
    'm-7-segments-v2'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"m-{plain}")[:_LONGEST_NAME].strip("-")


def write_engines(manifest: Manifest, folder: Path) -> None:
    """Write `triton/NAME/` and `kserve.yaml` into a bundle; the decoder is linked, or copied."""
    reveal = manifest.output.reveal
    caution = f'# CAUTION: the manifest reveals "{reveal}" only, but this engine always answers all logits.\n'
    remark = "" if reveal == "logits" else caution
    repository = folder / "triton" / manifest.name
    config = _TRITON.format(
        remark=remark,
        name=manifest.name,
        feature=manifest.feature.name,
        datatype=manifest.feature.datatype,
        dims=", ".join(map(str, manifest.feature.shape)),
        output=manifest.output.name,
        classes=manifest.output.shape[0],
        version=manifest.version,
    )
    write_text(repository / "config.pbtxt", config)
    write_text(repository / "labels.txt", "".join(f"{name}\n" for name in manifest.classes))
    weights = repository / manifest.version / "model.onnx"
    weights.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(folder / DECODER, weights)
    except OSError:
        shutil.copyfile(folder / DECODER, weights)
    model = {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "storageUri": f"pvc://models/{manifest.name}/triton",
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": cluster_name(manifest.name)},
        "spec": {"predictor": {"minReplicas": 1, "model": model}},
    }
    write_text(folder / "kserve.yaml", _KSERVE.format(remark=remark) + yaml.safe_dump(service, sort_keys=False))
