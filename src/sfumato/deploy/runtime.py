"""ONNX Runtime sessions from bytes that were verified, on one thread."""

from collections.abc import Mapping
from typing import Any

from sfumato.errors import BundleError, ConfigError

__all__ = ["check_signature", "run", "session_of"]


def session_of(model: bytes, name: str, *, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    From bytes, not from a path: what runs is what was hashed, whatever happens to the file in between.

    Args:
        model: the file's bytes.
        name: of the file, for messages.
        threads: cores for one call; one is fastest for small networks, gives equal results everywhere, and leaves no
            pool of threads that a forked child would miss.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        ConfigError: ONNX Runtime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("this needs the package onnxruntime; install sfumato[edge]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal; what is refused is raised as well
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen types, all of which mean this
        raise BundleError(f"ONNX Runtime cannot load {name} ({str(error)[:200]}); export the bundle again") from error


def run(session: Any, given: Mapping[str, Any], name: str) -> Any:
    """The one output of a session.

    Raises:
        BundleError: the network fails on these inputs.
    """
    try:
        (found,) = session.run(None, given)
    except Exception as error:
        raise BundleError(f"{name} fails ({str(error)[:200]}); do not use this bundle") from error
    return found


def check_signature(
    session: Any, inputs: Mapping[str, tuple[str, tuple[int, ...]]], output: tuple[str, tuple[int, ...]], name: str
) -> None:
    """Compare a session's inputs and output with what the manifest promises.

    Args:
        session: of ONNX Runtime.
        inputs: element type and shape without the batch, by name.
        output: name, and shape without the batch.
        name: of the file, for messages.

    Raises:
        BundleError: they differ.
    """
    found = {one.name: (one.type, tuple(one.shape[1:])) for one in session.get_inputs()}
    answers = [(one.name, tuple(one.shape[1:])) for one in session.get_outputs()]
    if found != dict(inputs) or answers != [output]:
        raise BundleError(
            f"{name} maps {found} to {answers}, the manifest says {dict(inputs)} to {[output]}; export the bundle again"
        )
