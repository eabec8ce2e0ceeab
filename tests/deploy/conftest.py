"""What torch's exporter makes anew at every call, made once for all exports of these tests."""

from functools import cache

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_registry():
    """The table from torch's operators to ONNX's, and the list of those: seconds each time, always the same."""
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        patch.setattr(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
        yield
