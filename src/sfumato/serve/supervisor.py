"""`serve`: a supervisor that never serves, and workers that never change.

The supervisor listens, reads generations, forks workers, and replaces those that die. At a reload it reads the next
generation from the disk, starts its workers, and waits until all are ready; then these accept and the old ones retire.
Whatever is not good until then ends the next generation and nothing else.

A worker and its supervisor talk over a pair of sockets: the worker says one line, `{}` when it is ready or why it
cannot be; the supervisor says `go`, `retire` or `stop`. Each learns from the end of the pair that the other is gone.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from sfumato.errors import BundleError, ConfigError, RemoteError, SfumatoError, StorageError
from sfumato.files import write_json
from sfumato.serve.core import MULTIPROCESS
from sfumato.serve.door import Door, descriptors, listen, loop_with
from sfumato.serve.generation import Generation
from sfumato.serve.logs import Log
from sfumato.serve.settings import ServeConfig
from sfumato.serve.worker import Worker

__all__ = ["reload", "serve"]

_PACKAGES = ("uvicorn", "httptools", "msgspec", "onnxruntime", "prometheus_client")
_PATIENCE = 300.0  # seconds in which a worker has to be ready
_LONGEST_PAUSE = 30.0


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads.

    Raises:
        SfumatoError: the port is taken, or the first generation is not good.
    """
    if not hasattr(os, "fork"):
        raise ConfigError(
            "serving needs a system that can fork, as Linux and macOS can; on Windows use WSL or a container"
        )
    if missing := [name for name in _PACKAGES if not find_spec(name)]:
        raise ConfigError(f"serving needs {', '.join(missing)}; install sfumato[serve]")
    try:
        figures = tempfile.mkdtemp(prefix="sfumato-metrics-")
    except OSError as error:
        raise StorageError(
            f"no folder for the metrics of the workers can be made ({error.strerror}); name one in TMPDIR that can be "
            "written"
        ) from error
    os.environ[MULTIPROCESS] = figures
    try:
        _Supervisor(config, Path(figures)).run()
    finally:
        del os.environ[MULTIPROCESS]
        shutil.rmtree(figures, ignore_errors=True)
        if config.announce is not None:
            with suppress(OSError):
                config.announce.unlink()


def reload(announced: Path, seconds: float = 300.0) -> int:
    """Have a server on this machine read bundles, tokens and certificates again.

    Args:
        announced: what `sfumato serve --json PATH` wrote.
        seconds: longest wait.

    Returns:
        The number of the generation that serves from now on.

    Raises:
        ConfigError: no server of this user runs there.
        RemoteError: something is not good; the server goes on with what it has.
    """
    asked, pid = time.monotonic(), _announced(announced)["pid"]
    words = Path(f"/proc/{pid}/cmdline")
    try:
        if words.exists() and b"serve" not in words.read_bytes().split(b"\0"):
            raise ProcessLookupError
        os.kill(pid, signal.SIGHUP)
    except (ProcessLookupError, PermissionError, OverflowError):
        raise ConfigError(
            f"the server of {announced} does not run any more, or is another user's; start it again"
        ) from None
    while time.monotonic() < asked + seconds:
        now = _announced(announced)
        if now["read_at"] >= asked:  # the clock is the same in all processes
            if now["error"]:
                raise RemoteError(f"nothing was reloaded, and the server goes on with what it has: {now['error']}")
            return int(now["generation"])
        time.sleep(0.05)
    raise RemoteError(f"the server has not reloaded within {seconds:g} s; its log may say why")


def _announced(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
        return {**value, "pid": int(value["pid"]), "read_at": float(value["read_at"])}
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(
            f"no server says in {path} that it runs; start one with `sfumato serve --json {path}`"
        ) from None


@dataclass(eq=False)
class _Process:
    pid: int
    control: socket.socket
    generation: Generation
    began: float
    ready: bool = False
    deadline: float = 0.0  # by the monotonic clock; then it is killed

    def tell(self, word: str) -> None:
        with suppress(OSError):
            self.control.send(f"{word}\n".encode())


class _Supervisor:
    def __init__(self, config: ServeConfig, figures: Path) -> None:
        self._config = config
        self._figures = figures
        self._log = Log(requests=config.log_requests)
        self._socket = listen(config.host, config.port)
        self._workers: list[_Process] = []
        self._current: Generation | None = None
        self._next: Generation | None = None
        self._replace: list[tuple[float, Generation]] = []  # when, and of what
        self._pause = 0.0
        self._stopping = False
        self._reload_wanted = False
        self._read_at = 0.0  # when the last attempt at a generation began to read the disk
        self._failed = ""

    def run(self) -> None:
        """Until told to stop, or until the first generation turns out not to be good."""
        if (most := descriptors(self._config)) < self._config.max_connections:
            said = f"only {most} connections can be open at once; allow more open files (ulimit -n)"
            self._log.event(said, "warning")
        awake, wake = socket.socketpair()
        for end in (awake, wake):
            end.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # its number arrives at `awake`
        signal.set_wakeup_fd(wake.fileno())
        # What every worker imports, so that a fork has it: a worker is then there at once.
        for name in ("onnxruntime", "prometheus_client", "uvicorn.protocols.http.httptools_impl"):
            import_module(name)
        self._begin(Generation.read(self._config))
        while self._workers or self._replace or not self._stopping:
            self._turn(awake)
            if self._failed and self._current is None and not self._workers:
                raise BundleError(self._failed)
        self._log.event("stopped")

    def _turn(self, awake: socket.socket) -> None:
        moments = [when for when, _ in self._replace] + [worker.deadline for worker in self._workers if worker.deadline]
        patience = max(0.0, min(moments) - time.monotonic()) if moments else None
        for ready in wait([awake, *(worker.control for worker in self._workers)], patience):
            if ready is awake:
                for number in awake.recv(4096):
                    self._obey(number)
            else:
                self._hear(next(worker for worker in self._workers if worker.control is ready))
        now = time.monotonic()
        for worker in self._workers:
            if worker.deadline and now > worker.deadline:
                os.kill(worker.pid, signal.SIGKILL)
        for entry in [entry for entry in self._replace if entry[0] <= now]:
            self._replace.remove(entry)
            self._fork(entry[1])
        if self._reload_wanted and self._next is None and self._current is not None and not self._stopping:
            self._reload_wanted, self._read_at = False, now
            try:
                self._begin(Generation.read(self._config, self._current.number + 1))
            except (SfumatoError, OSError) as error:
                self._give_up(str(error))

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_wanted = True
        elif self._stopping:
            for worker in self._workers:
                os.kill(worker.pid, signal.SIGKILL)
        else:
            self._stopping = True
            self._log.event("draining", seconds=self._config.drain_seconds)
            self._socket.close()  # the last worker that closes its copy is the last that accepts
            self._replace.clear()
            for worker in self._workers:
                self._dismiss(worker, "stop")

    def _begin(self, generation: Generation) -> None:
        self._next = generation
        for _ in range(self._config.workers):
            self._fork(generation)

    def _give_up(self, reason: str) -> None:
        """The next generation is not good; the current one, if there is one, stays."""
        for worker in self._workers:
            if worker.generation is self._next:
                os.kill(worker.pid, signal.SIGKILL)
        self._next, self._failed = None, reason
        if self._current is not None:
            self._log.event("reload failed", "error", error=reason)
            self._announce()

    def _hear(self, worker: _Process) -> None:
        """A worker has said its line, or has ended."""
        try:
            said = worker.control.recv(65536)
        except OSError:
            said = b""
        if not said:
            self._bury(worker)
        elif "error" in (line := json.loads(said)):
            if worker.generation is self._next:
                self._give_up(line["error"])
            else:  # what was good once: memory is short, or the like
                self._log.event("worker could not start", "error", error=line["error"])
        else:
            worker.ready = True
            if worker.generation in (self._current, self._next) and not self._stopping:
                worker.deadline = 0.0
            if worker.generation is self._current:
                worker.tell("go")
            elif worker.generation is self._next and all(
                other.ready for other in self._workers if other.generation is self._next
            ):
                self._switch()

    def _switch(self) -> None:
        old, self._current, self._next = self._current, self._next, None
        assert self._current is not None
        self._failed = ""
        for worker in self._workers:
            if worker.generation is self._current:
                worker.tell("go")
            elif old is not None and worker.generation is old:
                self._dismiss(worker, "retire")
        self._replace.clear()
        self._announce()
        models = [f"{bundle.manifest.name}/{bundle.manifest.version}" for bundle in self._current.bundles]
        if old is None:
            self._log.event("listening", rest=_address(self._socket), models=models)
            _warn(self._config, self._log)
        else:
            self._log.event("reloaded", generation=self._current.number, models=models)

    def _announce(self) -> None:
        if self._config.announce is not None and self._current is not None:
            about = {"rest": _address(self._socket), "pid": os.getpid(), "generation": self._current.number}
            with suppress(SfumatoError):
                write_json(self._config.announce, {**about, "read_at": self._read_at, "error": self._failed})

    def _dismiss(self, worker: _Process, word: str) -> None:
        worker.tell(word)
        worker.deadline = time.monotonic() + self._config.drain_seconds + self._config.shutdown_seconds + 5

    def _bury(self, worker: _Process) -> None:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        worker.control.close()
        self._workers.remove(worker)
        for path in self._figures.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)
        if self._stopping:
            return
        if worker.generation is self._next:
            self._give_up(f"a worker of the new generation ended before it was ready (code {code})")
        elif worker.generation is self._current:
            self._log.event("worker ended", "error", code=code)
            lived = time.monotonic() - worker.began
            self._pause = 0.0 if lived > _LONGEST_PAUSE else min(_LONGEST_PAUSE, max(0.1, 2 * self._pause))
            self._replace.append((time.monotonic() + self._pause, worker.generation))

    def _fork(self, generation: Generation) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for worker in self._workers:
                worker.control.close()  # or its end would not be seen
            os._exit(self._child(generation, theirs))
        theirs.close()
        self._workers.append(_Process(pid, ours, generation, time.monotonic(), deadline=time.monotonic() + _PATIENCE))

    def _child(self, generation: Generation, control: socket.socket) -> int:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            door = Door(self._config, descriptors(self._config))
            with asyncio.Runner(loop_factory=loop_with(door)) as runner:
                runner.run(self._work(generation, door, control))
        except SfumatoError as error:
            with suppress(OSError):
                control.send(json.dumps({"error": str(error)}).encode())
            return 2
        except BaseException as error:
            self._log.failure(error)
            return 1
        return 0

    async def _work(self, generation: Generation, door: Door, control: socket.socket) -> None:
        worker = Worker(self._config, generation, door, self._log)
        reader, writer = await asyncio.open_unix_connection(sock=control)
        writer.write(b"{}")
        if await reader.readline() == b"go\n":
            await worker.start(self._socket)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # uvicorn has taken it
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, reader.feed_eof)
            await worker.stop(retire=await reader.readline() == b"retire\n")


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _warn(config: ServeConfig, log: Log) -> None:
    if config.host in ("localhost", "::1", "[::1]") or config.host.startswith("127."):
        return
    if config.tls_cert is None:
        log.event("without TLS, features and tokens cross the network readable by others", "warning")
    if config.token_file is None and config.client_ca is None:
        log.event("without tokens or client certificates, everybody who reaches this address is served", "warning")
