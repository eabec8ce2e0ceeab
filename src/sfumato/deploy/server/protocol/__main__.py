"""`python -m sfumato.deploy.server.protocol`: generate the messages again; needs grpcio-tools."""

import sys
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[3]

# Another client of the protocol in the same process has its own `inference.*` messages; one pool cannot hold both.
COMMON = "_descriptor_pool.Default()"
OWN = "_descriptor_pool.DescriptorPool()"


def generate(out: Path) -> None:
    """Write `open_inference_pb2.py` and its type stubs below `out`, in the package's own folders."""
    name = FOLDER.relative_to(ROOT) / "open_inference.proto"
    words = ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", str(ROOT / name)]
    if import_module("grpc_tools.protoc").main(words):
        raise SystemExit("protoc failed; its message is above")
    generated = out / name.with_name("open_inference_pb2.py")
    text = generated.read_text(encoding="utf-8")
    if text.count(COMMON) != 1:
        raise SystemExit(f"{generated} does not use {COMMON} once; adapt this script to the new protoc")
    generated.write_text(text.replace(COMMON, OWN), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
