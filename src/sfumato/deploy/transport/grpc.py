"""gRPC without generated stubs: `grpcio` carries the bytes."""

from typing import Any, ClassVar

import numpy.typing as npt

from sfumato.deploy.manifest import Manifest
from sfumato.deploy.messages import Query, Tensors, grpc_answer, grpc_query
from sfumato.deploy.transport.base import Remote, Security, Unavailable, sentence
from sfumato.errors import ConfigError, RemoteError

__all__ = ["GrpcTransport"]

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class GrpcTransport(Remote):
    """One channel; encrypted if certificates are given or the address begins with `grpcs://`."""

    name: ClassVar[str] = "grpc"

    def __init__(self, url: str, security: Security, *, timeout: float, retries: int) -> None:
        super().__init__(url, security, timeout=timeout, retries=retries)
        try:
            import grpc
        except ImportError:
            raise ConfigError(
                "gRPC needs the package grpcio; install it (`pip install grpcio`), or use transport http"
            ) from None
        self._grpc = grpc
        scheme, _, target = url.rpartition("://")
        target = target.rstrip("/")
        if scheme not in ("", "grpc", "grpcs") or not target.rpartition(":")[2].isdecimal():
            raise ConfigError(f"{url} is no address of a gRPC server; give one such as 127.0.0.1:8001")
        encrypted = scheme == "grpcs" or security.ca is not None or security.cert is not None
        if encrypted and scheme == "grpc":
            raise ConfigError(f"certificates are given, but {url} is not encrypted; write grpcs://")
        self.host, self.encrypted = target.rpartition(":")[0].strip("[]"), encrypted
        if encrypted:
            self._channel = grpc.secure_channel(target, _credentials(grpc, security))
        else:
            self._channel = grpc.insecure_channel(target)
        self._call = self._channel.unary_unary(
            _METHOD, request_serializer=lambda body: body, response_deserializer=lambda body: body
        )

    def encode(self, manifest: Manifest, feature: npt.NDArray[Any]) -> Query:
        """A `ModelInferRequest`."""
        return grpc_query(manifest, feature)

    def send(self, manifest: Manifest, query: Query) -> Tensors:
        """One call."""
        token = self.security.token
        metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        try:
            body: bytes = self._call(query.body, timeout=self.timeout, metadata=metadata)
        except self._grpc.RpcError as error:
            raise self._failure(error, manifest) from error
        return grpc_answer(body)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _failure(self, error: Any, manifest: Manifest) -> Exception:
        code, reason = error.code(), sentence(error.details())
        codes = self._grpc.StatusCode
        if code == codes.UNAVAILABLE and ("CERTIFICATE" in reason.upper() or "SSL" in reason.upper()):
            return RemoteError(
                f"no encrypted connection to {self.url} ({reason}); give the authority that signed its certificate "
                "with --ca, and the client's own with --cert if it asks for one"
            )
        if code in (codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED):
            return Unavailable(f"{code.name}, {reason}")
        if code == codes.DEADLINE_EXCEEDED:
            return Unavailable(f"no answer within {self.timeout:g} s")
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
            return RemoteError(f"{self.url} refuses the token ({code.name}); give the right one with --token-file")
        if code == codes.NOT_FOUND:
            return RemoteError(
                f"{self.url} does not serve the model {manifest.name!r} in version {manifest.version} ({reason}); "
                "serve this bundle there, or ask another server"
            )
        return RemoteError(f"{self.url} refuses the query ({code.name}: {reason})")


def _credentials(grpc: Any, security: Security) -> Any:
    try:
        chain, key = (None, None) if security.cert is None else (path.read_bytes() for path in security.cert)
        root = None if security.ca is None else security.ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"the certificates cannot be read ({sentence(error)}); give PEM files") from error
    return grpc.ssl_channel_credentials(root, key, chain)
