"""Everything that can be set about a server, checked once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.cores import usable_cores
from sfumato.errors import ConfigError
from sfumato.settings import check_settings

__all__ = ["EngineName", "Reveal", "ServeConfig"]

EngineName = Literal["onnxruntime", "openvino"]

Reveal = Literal["logits", "top_k", "label"]

_LEAST = {
    "workers": 1,
    "threads": 0,
    "max_batch": 1,
    "max_rows": 1,
    "queue": 1,
    "max_request_bytes": 1024,
    "max_connections": 1,
    "drain_seconds": 0,
    "port": 0,
    "top_k": 1,
}
_ABOVE = dict.fromkeys(("deadline_ms", "client_timeout", "shutdown_seconds"), 0)


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `sfumato serve`.

    Attributes:
        bundles: Folders of exported bundles. Each is served under its manifest's name and version.
        host: Address to listen on. The default is reachable from this machine alone.
        port: Port to listen on; 0 takes a free one.
        workers: Processes that serve. One that dies is replaced.
        threads: Inference threads of each worker, one call of the network in each; 0 means one for each core.
        engine: What runs the networks. OpenVINO has to be installed.
        max_batch: Most rows of several requests that are put together for one call of the network.
        max_rows: Most rows in one request. One with more than `max_batch` runs alone.
        queue: Most requests waiting, of each model; one more is refused (429). At most half of the connections.
        deadline_ms: Longest wait in the queue; then the request is refused (503).
        token_file: File of bearer tokens, one a line; without it everybody is served.
        tls_cert: Certificate chain in PEM.
        tls_key: Private key of the certificate in PEM.
        client_ca: Certificates in PEM that must have signed the client's certificate (mutual TLS).
        require_signature: Ed25519 public key in PEM that must have signed every bundle.
        reveal: What is answered. It gives away less than the manifest allows, never more.
        top_k: How many classes `reveal top_k` gives.
        max_request_bytes: Largest body of a request.
        max_connections: Most connections of each worker. The one that waits longest makes room for another.
        client_timeout: Seconds in which a client has to deliver a request it has begun.
        drain_seconds: How long to keep serving after SIGTERM. Readiness says no meanwhile, so that balancers
            notice.
        shutdown_seconds: Longest wait for answers that are still due after that.
        log_requests: Write one JSON line for each request.
        announce: File that gets the address and more as JSON once requests are answered. `sfumato reload` reads
            it.
    """

    bundles: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    threads: int = 0
    engine: EngineName = "onnxruntime"
    max_batch: int = 32
    max_rows: int = 256
    queue: int = 256
    deadline_ms: float = 1000.0
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    require_signature: Path | None = None
    reveal: Reveal | None = None
    top_k: int | None = None
    max_request_bytes: int = 16 << 20
    max_connections: int = 512
    client_timeout: float = 10.0
    drain_seconds: float = 0.5
    shutdown_seconds: float = 30.0
    log_requests: bool = True
    announce: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ConfigError("no bundle is given; name at least one folder made by `sfumato export`")
        check_settings(self, least=_LEAST, above=_ABOVE, below={"port": 65536})
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together; give both or none")
        if self.client_ca is not None and self.tls_cert is None:
            raise ConfigError("client_ca asks for mutual TLS, which needs the server's own tls_cert and tls_key")
        if (self.top_k is not None) != (self.reveal == "top_k"):
            raise ConfigError("reveal top_k and top_k belong together, e.g. --reveal top_k --top-k 3")

    @property
    def inference_threads(self) -> int:
        """Threads of each worker, with 0 resolved to the cores this process may use."""
        return self.threads or usable_cores()
