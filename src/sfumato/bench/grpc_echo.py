"""A gRPC server that computes nothing: what is left of a machine for whoever serves over gRPC in Python.

`PYTHON grpc_echo.py` listens on a free port of loopback, prints it, and gives every message back.
"""

import asyncio
import sys
from typing import Any

import grpc

from sfumato.deploy.server.supervisor import loop_factory


async def _give_back(message: bytes, _: Any) -> bytes:
    return message


async def _serve() -> None:
    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(_give_back)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve())
