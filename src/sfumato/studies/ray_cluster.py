"""Tasks on a Ray cluster, one per item."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from sfumato.cores import usable_cores
from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.studies.executor import Death, Executor, Reply, Work, at_least_one, perform

_KNOCK_SECONDS = 10.0
_STORE_BYTES = 100_000_000  # results are small; Ray alone would take a third of the memory
_CAUSES = {
    "NodeDiedError": "its node left the cluster",
    "OutOfMemoryError": "its node ran out of memory",
    "WorkerCrashedError": "its process died",
}


class RayExecutor(Executor):
    """Run each item as a Ray task.

    An item whose worker or node is lost runs again elsewhere. The node on which Ray's head runs must live. What
    queues behind the runs of others when a stop is asked for still runs.

    A cluster executes what anyone asks who reaches it and has its token. Ray listens on all network interfaces and
    offers no other way; a cluster that is started here has no dashboard and, unless RAY_AUTH_MODE says otherwise, a
    fresh token that nobody else knows. For one that is already there, see to both.

    Args:
        address: of the cluster, `host:port`; None takes the environment's RAY_ADDRESS or else starts Ray on this
            machine for as long as the run lasts.
        cpus: per item, which is also its number of threads.
        gpus: per item; a fraction shares one.
        attempts: how often an item is started before it is given up, where its workers die.

    Raises:
        ConfigError: Ray is not installed or a number is out of its range; when the run starts: no cluster answers, or
            this machine has not what an item needs.

    Warns:
        SfumatoWarning: no node of the cluster has what an item needs; the run waits until one joins.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: float = 0, *, attempts: int = 3) -> None:
        super().__init__(attempts=attempts)
        if gpus < 0:
            raise ConfigError(f"gpus must be 0 or more, not {gpus}")
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ConfigError("a Ray cluster is reached through Ray; run `pip install 'sfumato[ray]'`") from None
        self.address = address
        self.cpus = at_least_one("cpus", cpus)
        self.gpus = gpus
        self._perform: Any = None  # once Ray is reached
        self._owner = False

    def _open(self, count: int) -> None:
        import ray

        if self._perform is not None:
            return
        self._owner = not ray.is_initialized()
        if self._owner:
            _connect(self)
        if not self._slots():
            warnings.warn(f"{_nowhere(self)}; waiting until one joins", SfumatoWarning, stacklevel=3)
        # Ray's own retries are off: it does not tell how many there were.
        remote: Any = ray.remote(perform)
        self._perform = remote.options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)

    def _places(self) -> int:
        """What the nodes that live now can take; one may always be queued."""
        return max(1, self._slots())

    def _submit(self, work: Work, item: Any) -> Any:
        try:
            return self._perform.remote(work, item, self.cpus)
        except TypeError as error:
            raise self.unsendable(error) from error

    def _wait(self, handles: list[Any], seconds: float) -> list[Any]:
        import ray

        return list(ray.wait(handles, num_returns=1, timeout=seconds)[0])

    def _report(self, handle: Any) -> Reply | Death:
        import ray

        try:
            reply: Reply = ray.get(handle)
        except ray.exceptions.RayTaskError as error:
            return self.unloadable(str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError as error:
            name = type(error).__name__
            cause = _CAUSES.get(name, f"Ray lost it ({name})")
            return Death(cause, "give each item more cpus so that fewer share a node's memory")
        return reply

    def _close(self, handles: list[Any]) -> None:
        import ray

        for reference in handles:
            ray.cancel(reference, force=True)
        if self._owner:
            ray.shutdown()
        self._perform, self._owner = None, False

    def _slots(self) -> int:
        import ray

        slots = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            most = int(has.get("CPU", 0) // self.cpus)
            slots += min(most, int(has.get("GPU", 0) / self.gpus)) if self.gpus else most
        return slots


def _connect(executor: RayExecutor) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = executor.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        import torch

        if executor.cpus > usable_cores() or executor.gpus > torch.cuda.device_count():
            raise ConfigError(f"{_nowhere(executor)}; ask for less, or connect to a cluster that has them")
        # Ray asks for a token unless RAY_AUTH_MODE says otherwise (setting that here would be too late, it is read at
        # import). It would keep one in the home folder; this one goes with this process.
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        _knock(address)
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or give no address"
        ) from error


def _nowhere(executor: RayExecutor) -> str:
    return f"no node of Ray has {executor.cpus} CPUs and {executor.gpus:g} GPUs, which each item asks for"


def _knock(address: str) -> None:
    """Ray tries a dead address for minutes; an open port answers at once."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, by which a command line stops cleanly; put it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
