"""One worker: both transports on one event loop, from the first listening to the last answer."""

import asyncio
import os
import signal
import socket
from dataclasses import asdict, dataclass
from typing import Any

from sfumato.deploy.server.core import Core
from sfumato.deploy.server.gate import Gate
from sfumato.deploy.server.http import RestServer
from sfumato.deploy.server.inference import Inference
from sfumato.deploy.server.logs import Log, silence_libraries
from sfumato.deploy.server.rest import build_app
from sfumato.deploy.server.rpc import build_grpc
from sfumato.deploy.server.settings import ServeConfig
from sfumato.deploy.server.sockets import address_of, listen, with_port
from sfumato.errors import ConfigError
from sfumato.files import write_json

__all__ = ["Addresses", "Service", "run_worker"]


@dataclass(frozen=True)
class Addresses:
    """Where a service listens, as host:port; gRPC may be off."""

    rest: str
    grpc: str | None


class Service:
    """Both transports of one worker.

    Args:
        config: the settings.
        rest_socket: bound and listening; the service binds one itself where None is given.
        share_port: whether other workers listen on the same gRPC port.
        log: where events go.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        rest_socket: socket.socket | None = None,
        share_port: bool = False,
        log: Log | None = None,
    ) -> None:
        self.config = config
        self.core = Core(config, log)
        self._socket = listen(config.host, config.port) if rest_socket is None else rest_socket
        self._share_port = share_port
        self._rest: RestServer | None = None
        self._grpc: Any = None
        self._rest_task: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Load the bundles and listen.

        Raises:
            SfumatoError: a bundle, a file or a port is not as it should be.
        """
        config, core = self.config, self.core
        try:
            await core.load()
            grpc_address = await self._start_grpc()
        except BaseException:
            self._socket.close()
            raise
        inference = Inference(core)
        gate = Gate(build_app(core, inference), inference, core, self._connections)
        self._rest = RestServer(gate, config, core.certificates.context)
        address = address_of(self._socket)
        self._rest_task = asyncio.create_task(self._rest.serve([self._socket]))
        while not self._rest.started:
            if self._rest_task.done():
                self._rest_task.result()
            await asyncio.sleep(0.001)
        addresses = Addresses(address, grpc_address)
        if config.announce is not None:
            write_json(config.announce, asdict(addresses))
        core.log.event("listening", rest=addresses.rest, grpc=addresses.grpc, models=core.models.names())
        _warn(config, core.log)
        return addresses

    async def stop(self) -> None:
        """Say no to balancers, go on for `drain_seconds`, then take no new request and answer the accepted ones."""
        core, config = self.core, self.config
        core.ready = False
        core.log.event("draining", seconds=config.drain_seconds)
        await asyncio.sleep(config.drain_seconds)
        core.stopping = True
        if self._rest is not None and self._rest_task is not None:
            self._rest.should_exit = True
            grpc_stop = self._grpc.stop(config.shutdown_seconds) if self._grpc is not None else asyncio.sleep(0)
            await asyncio.gather(grpc_stop, self._rest_task)
        try:
            async with asyncio.timeout(config.shutdown_seconds):
                await core.models.drain()
        except TimeoutError:
            core.log.event("answers were still due", "error")
        core.models.close()
        core.log.event("stopped")

    def _connections(self) -> int:
        return len(self._rest.server_state.connections) if self._rest else 0

    async def _start_grpc(self) -> str | None:
        config = self.config
        if config.grpc_port is None:
            return None
        self._grpc = build_grpc(self.core, share_port=self._share_port)
        credentials = self.core.certificates.grpc_credentials()
        wanted = with_port(config.host, config.grpc_port)
        try:
            if credentials is None:
                port = self._grpc.add_insecure_port(wanted)
            else:
                port = self._grpc.add_secure_port(wanted, credentials)
        except RuntimeError:
            raise ConfigError(f"cannot listen on {wanted}; choose another --grpc-port or --host") from None
        await self._grpc.start()
        return with_port(config.host, port)


async def run_worker(service: Service, *, supervised: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads. A second signal ends it at once.

    Args:
        service: not yet started.
        supervised: SIGINT is the supervisor's business; a terminal sends it to all.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _unforeseen(service.core.log, context))
    silence_libraries()
    stopping = asyncio.Event()
    reloads: set[asyncio.Task[bool]] = set()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    def reload() -> None:
        task = asyncio.create_task(service.core.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def ignore() -> None:
        pass

    on_interrupt = ignore if supervised else stop
    for number, handler in ((signal.SIGTERM, stop), (signal.SIGINT, on_interrupt), (signal.SIGHUP, reload)):
        loop.add_signal_handler(number, handler)
    await service.start()
    await stopping.wait()
    await service.stop()


def _unforeseen(log: Log, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        log.failure(error)


def _warn(config: ServeConfig, log: Log) -> None:
    if config.host in ("localhost", "::1") or config.host.startswith("127."):
        return
    if config.tls_cert is None:
        log.event("without TLS, features and tokens cross the network readable by others", "warning")
    if config.token_file is None and config.client_ca is None:
        log.event("without tokens or client certificates, everybody who reaches this address is served", "warning")
