"""`serve`: one worker in this process, or several below a supervisor that replaces those that die."""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sfumato.deploy.server.logs import Log
from sfumato.deploy.server.metrics import MULTIPROCESS
from sfumato.deploy.server.settings import ServeConfig
from sfumato.deploy.server.sockets import listen, reserve
from sfumato.errors import ConfigError, SfumatoError

__all__ = ["serve"]

_PDEATHSIG = 1  # from <sys/prctl.h>
_PACKAGES = ("fastapi", "uvicorn", "httptools", "grpc", "google.protobuf", "onnxruntime", "prometheus_client")
_BAD_INPUT = 2  # a worker that ends so would end so again
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SfumatoError: a bundle, a file or a port is not as it should be.
    """
    _require()
    if config.workers == 1:
        _work(config)
    else:
        _Supervisor(config).run()


def _require() -> None:
    """One sentence in place of a traceback, before anything else is done."""
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if not find_spec(name)]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}; install sfumato[serve]")


def _work(config: ServeConfig, rest_socket: socket.socket | None = None, *, supervised: bool = False) -> None:
    from sfumato.deploy.server.service import Service, run_worker

    async def work() -> None:
        await run_worker(Service(config, rest_socket=rest_socket, share_port=supervised), supervised=supervised)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())


def loop_factory() -> Any:
    """What makes the event loop of a worker: uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Supervisor:
    """Forks workers that share the listening sockets, passes signals on, replaces the dead."""

    def __init__(self, config: ServeConfig) -> None:
        self._log = Log()
        self._workers: dict[int, float] = {}
        self._stopping = False
        self._failed = False
        # Each worker accepts from this one socket; what a dead worker had not accepted goes to another.
        self._rest = listen(config.host, config.port)
        self._grpc = None if config.grpc_port is None else reserve(config.host, config.grpc_port)
        port = None if self._grpc is None else self._grpc.getsockname()[1]
        self._config = ServeConfig(**{**vars(config), "grpc_port": port, "workers": 1})
        self._count = config.workers

    def run(self) -> None:
        """Until told to stop, or until a worker says that the input is bad."""
        figures = tempfile.mkdtemp(prefix="sfumato-metrics-")
        os.environ[MULTIPROCESS] = figures
        parent = os.getpid()
        try:
            for number in _FORWARDED:
                signal.signal(number, self._forward)
            for _ in range(self._count):
                self._fork()
            while self._workers:
                self._reap(Path(figures))
        finally:
            if os.getpid() == parent:
                shutil.rmtree(figures, ignore_errors=True)
        if self._failed:
            raise ConfigError("the workers could not start; the reason is above")

    def _fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(self._child())
        self._workers[pid] = time.monotonic()
        if self._stopping:  # the signal came between
            os.kill(pid, signal.SIGTERM)

    def _child(self) -> int:
        try:
            _follow_parent()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _work(self._config, self._rest, supervised=True)
        except SfumatoError as error:
            print(f"sfumato: error: {error}", file=sys.stderr)  # noqa: T201 - the supervisor reports for its children
            return _BAD_INPUT
        except SystemExit as stop:
            return int(stop.code or 0)
        except BaseException as error:
            self._log.failure(error)
            return 1
        return 0

    def _reap(self, figures: Path) -> None:
        try:
            pid, status = os.wait()
        except (ChildProcessError, InterruptedError):
            return
        began = self._workers.pop(pid, None)
        for path in figures.glob(f"gauge_live*_{pid}.db"):
            path.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        if began is None or self._stopping:
            return
        if code == _BAD_INPUT:
            self._failed = True
            self._forward(signal.SIGTERM)
            return
        self._log.event("worker ended", "error", code=code)
        if time.monotonic() - began < 1:
            time.sleep(1)  # one that dies at once must not fill the machine with forks
        if not self._stopping:
            self._fork()

    def _forward(self, number: int, _: Any = None) -> None:
        if number != signal.SIGHUP:
            self._stopping = True
            self._rest.close()  # the last worker that closes its copy is the last that accepts
        for pid in list(self._workers):
            os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)


def _follow_parent() -> None:
    """End when the supervisor ends, however it ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)
