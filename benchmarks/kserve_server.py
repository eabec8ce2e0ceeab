"""The same decoder behind kserve's own server: `PYTHON kserve_server.py decoder.onnx PORT`.

Runs on its own, in an environment that has `kserve` and `onnxruntime`; nothing of Sfumato is imported.
"""

import logging
import sys

import onnxruntime

from kserve import InferOutput, InferResponse, Model, ModelServer


class _Tiny(Model):
    def __init__(self, path: str) -> None:
        super().__init__("tiny")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):  # type: ignore[no-untyped-def]
        feature = payload.inputs[0].as_numpy()
        logits = self._session.run(["logits"], {"feature": feature})[0]
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(payload.id or "none", "tiny", [output])


if __name__ == "__main__":
    logging.disable(logging.INFO)  # neither server logs requests while it is measured
    _, decoder, port = sys.argv
    sys.argv = sys.argv[:1]  # kserve reads the command line when it is imported, and again here
    server = ModelServer(http_port=int(port), enable_grpc=False, access_log_format=None)
    server.start([_Tiny(decoder)])
