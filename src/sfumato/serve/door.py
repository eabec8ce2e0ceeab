"""The door of a worker: how many connections there are, how long each may keep us waiting, which one has to go.

An ASGI server asks the running event loop for a listening server and for nothing else of the network. `loop_with` gives
an event loop that answers with a `Door`; what stands behind it is uvicorn as it is. Between the loop's transport and
uvicorn's protocol stands a `Guest`, which is a protocol to the one and a transport to the other: asyncio's public
interfaces, nothing of uvicorn's own.

Who holds a connection and keeps us waiting (nothing said, half a request, an answer not read) is timed, and is the
first to go when a new connection finds the house full. So whoever comes is let in, as long as fewer requests are at
work than there are places.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from sfumato.errors import ConfigError
from sfumato.serve.settings import ServeConfig

__all__ = ["GUEST", "Door", "Guest", "descriptors", "listen", "loop_with"]

_BACKLOG = 2048
_BURST = 16  # connections taken in one turn of the loop
_RESERVE, _FEWEST = 48, 16  # descriptors for everything else, and connections below which serving makes no sense
_HEAD = 64 << 10  # bytes of a request's head
_SLICE = 32 << 10  # bytes that the server is given in one turn of the loop
_END = b"\r\n\r\n"
# Java's client offers HTTP/2 with every request. Nobody has to take that up, but uvicorn would then lose the body.
_UPGRADE = re.compile(rb"(?i)\A([a-z]+ [^\r\n]* HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?)upgrade:[^\r\n]*\r\n")
_TICK = 0.1
_FRESH, _IDLE = 2.0, 0.25  # seconds that a connection is left open at the end for a request on its way

GUEST: ContextVar["Guest | None"] = ContextVar("guest", default=None)


class Guest(asyncio.Protocol):
    """One connection."""

    def __init__(self, door: "Door", connection: socket.socket) -> None:
        self._door, self._connection, self._loop = door, connection, door.loop
        self._transport: Any = None
        self._server: Any = door.make_protocol()
        self._task: asyncio.Task[Any] | None = None
        self.since: float | None = self._loop.time()  # when we began to wait for a request; None while it waits for us
        self.stalled: float | None = None  # when the client ceased to read what we send
        self.asked = False  # a request has been answered before
        self._begun = False  # bytes of the next request have come
        self._reading = False  # the server reads a body
        self._answering = False
        self._paused = False  # by the server
        self._unseen = 0  # bytes of a head that has no end yet
        self._held = b""  # what the server was not given yet

    # What the application says.

    def read(self) -> None:
        """It reads a body: what comes now is no head."""
        self._reading = True

    def work(self, task: "asyncio.Task[Any] | None" = None) -> None:
        """The request is here: from now on the client waits for us. When it leaves, the task is cancelled."""
        self.since, self._task = None, task
        self._reading, self._unseen = False, 0

    def answer(self) -> None:
        """The answer begins."""
        self._answering, self._task = True, None

    def rest(self) -> None:
        """The answer is on its way: from now on we wait for the next request."""
        self.work()
        self.since = self._loop.time()
        self.asked, self._answering, self._begun = True, False, False

    # A protocol to the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there, and its TLS."""
        self._transport = transport
        for name in ("write", "close", "is_closing", "get_extra_info"):
            setattr(self, name, getattr(transport, name))
        self._server.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; so is the reason to compute."""
        self._door.guests.discard(self)
        self._held = b""
        if self._task is not None:
            self._task.cancel()
        self._server.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self.stalled = self._loop.time()
        self._server.pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        self.stalled = None
        self._server.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Pass it on, as much as the server takes: at most one head, and a little at a time.

        The rest waits in here, as bytes, until the application has had its turn.
        """
        if not self._begun:
            self._begun = True
            if self.since is not None:
                self.since = self._loop.time()
            if not self.asked and data[:1] == b"\x16" and not self._door.secure:
                return self.refuse(400, "this port speaks plain HTTP: write http://, or serve with --tls-cert")
        if self._held:
            self._held += data
        else:
            self._feed(data)
        return None

    def _feed(self, data: bytes) -> None:
        GUEST.set(self)  # the server's task for a request inherits it
        first, last = 0, len(data) if self._reading else min(len(data), _SLICE)
        while first < last and not self._paused and not self.is_closing():
            end = data.find(_END, first, last)
            end = last if end < 0 else end + len(_END)
            piece = data[first:end]
            if not self._reading:
                self._unseen = 0 if piece.endswith(_END) else self._unseen + len(piece)
                if self._unseen > _HEAD:
                    return self.refuse(431, "the head of the request is too large")
                if b"\r\nupgrade:" in piece.lower():
                    piece = _UPGRADE.sub(rb"\1", piece)
            self._server.data_received(piece)
            first = end
        if first < len(data) and not self.is_closing():
            self._held = data[first:]
            if not self._paused:
                self._transport.pause_reading()
                self._loop.call_soon(self._read_on)
        return None

    def _read_on(self) -> None:
        if self._paused or self.is_closing():
            return
        data, self._held = self._held, b""
        self._feed(data)
        if not self._held and not self._paused and not self.is_closing():
            self._transport.resume_reading()

    # A transport to the server.

    write: Callable[[bytes], None]
    close: Callable[[], None]
    get_extra_info: Callable[..., Any]

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return True  # until there is a transport, whose own method takes this one's place

    def pause_reading(self) -> None:
        """The server has enough for now."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The server can take more: first what is held, once it has done what it is at."""
        self._paused = False
        self._loop.call_soon(self._read_on)

    # What the door does.

    def waited(self) -> float:
        """For how long the client has kept us waiting; negative while it waits for us."""
        begins = [begin for begin in (self.since, self.stalled) if begin is not None]
        return self._loop.time() - min(begins) if begins else -1.0

    def check(self, patience: float, *, leaving: bool) -> None:
        """Show out whoever keeps us waiting too long."""
        waited = self.waited()
        if waited > patience:
            if self._answering or self.stalled is not None or self.is_closing():
                self.leave()
            elif self._begun or not self.asked:  # whoever waits for the body hears that the connection is gone
                self.refuse(408, f"the request did not come within {patience:g} seconds")
        elif leaving and not self._begun and waited > (_IDLE if self.asked else _FRESH):
            self.leave()

    def refuse(self, status: int, sentence: str) -> None:
        """Say why, and end the connection."""
        self.write(_refusal(status, sentence))
        self.close()

    def leave(self) -> None:
        """End the connection at once, whatever state it is in."""
        self._door.guests.discard(self)
        if self._transport is not None:
            self._transport.abort()
        else:  # in its TLS handshake: the loop sees the end
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)


class Door:
    """All connections of one worker, `most` at the same time."""

    def __init__(self, config: ServeConfig, most: int) -> None:
        self.most = most
        self.guests: set[Guest] = set()
        self.secure = False
        self.leaving = False
        self.loop: asyncio.AbstractEventLoop
        self.make_protocol: Callable[[], Any]
        self._patience = config.client_timeout
        self._socket: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, make_protocol: Callable[[], Any], sock: socket.socket, context: ssl.SSLContext | None) -> "Door":
        """Begin to accept."""
        self.loop = asyncio.get_running_loop()
        self.make_protocol, self._socket, self._context = make_protocol, sock, context
        self.secure = context is not None
        sock.setblocking(False)
        self.loop.add_reader(sock.fileno(), self._accept)
        self.loop.call_later(_TICK, self._tick)
        return self

    def close(self) -> None:
        """Accept no more, except for those who wait to be accepted."""
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            while self._accept():
                pass
            self._socket.close()  # at once: who comes later is refused, or goes to another process
            self._socket = None

    async def wait_closed(self) -> None:
        """Nothing to wait for."""

    async def empty(self, seconds: float) -> bool:
        """Wait until everybody has an answer and is gone, for so long at most; who still waits then has to go."""
        self.leaving = True
        end = self.loop.time() + seconds
        while self.guests and self.loop.time() < end:
            await asyncio.sleep(0.02)
        late = bool(self.guests)
        for guest in list(self.guests):
            guest.leave()
        return not late

    def _tick(self) -> None:
        for guest in list(self.guests):
            guest.check(self._patience, leaving=self.leaving)
        self.loop.call_later(_TICK, self._tick)

    def _accept(self) -> bool:
        """Take some connections; tell whether there may be more."""
        for _ in range(_BURST):
            try:
                connection, _address = self._socket.accept()  # type: ignore[union-attr]
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:
                continue
            except OSError:  # no descriptor is left, in spite of all
                self._make_room()
                return False
            if len(self.guests) >= self.most and not self._make_room():
                connection.close()
                continue
            connection.setblocking(False)
            guest = Guest(self, connection)
            self.guests.add(guest)
            task = self.loop.create_task(self._welcome(guest, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    def _make_room(self) -> bool:
        """Show out who keeps us waiting longest, those first who have never asked for anything."""
        longest = max(self.guests, key=lambda guest: (guest.waited() >= 0, not guest.asked, guest.waited()))
        if longest.waited() < 0:
            return False
        longest.leave()
        return True

    async def _welcome(self, guest: Guest, connection: socket.socket) -> None:
        handshake = None if self._context is None else self._patience
        try:
            if self._context is not None and await self._first_byte(connection) != b"\x16":
                connection.recv(_HEAD)  # what is left unread would reset the connection, and the answer with it
                connection.send(_refusal(400, "this port speaks TLS: write https://"))
                raise OSError
            await self.loop.connect_accepted_socket(
                lambda: guest, connection, ssl=self._context, ssl_handshake_timeout=handshake
            )
        except OSError:  # ssl.SSLError and ConnectionError are among them; the client may try again
            self.guests.discard(guest)
            connection.close()

    async def _first_byte(self, connection: socket.socket) -> bytes:
        arrived = asyncio.Event()
        self.loop.add_reader(connection.fileno(), arrived.set)
        try:
            await asyncio.wait_for(arrived.wait(), self._patience)  # a TimeoutError is an OSError
        finally:
            self.loop.remove_reader(connection.fileno())
        return connection.recv(1, socket.MSG_PEEK)


def _refusal(status: int, sentence: str) -> bytes:
    """An answer before there is a server for the connection, or in its place; the connection ends with it."""
    body = json.dumps({"error": sentence}).encode()
    head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


def loop_with(door: Door) -> Callable[[], asyncio.AbstractEventLoop]:
    """A maker of event loops whose listening server is the door; uvloop's, where there is one."""
    base: Any = asyncio.SelectorEventLoop
    with contextlib.suppress(ImportError):
        from uvloop import Loop as base

    class Loop(base):
        async def create_server(self, make_protocol: Any, *_: Any, sock: Any = None, ssl: Any = None, **__: Any) -> Any:
            return door.open(make_protocol, sock, ssl)

    return Loop


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket; `::` takes connections of IPv4 as well."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        both = bare == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((bare, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error


def descriptors(config: ServeConfig) -> int:
    """How many connections a worker can hold: the limit on open files is raised as far as it goes, then obeyed."""
    import resource  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd")) + _RESERVE
    except OSError:  # a container without /dev
        used = 2 * _RESERVE
    wanted = config.max_connections + used
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = config.max_connections if soft == resource.RLIM_INFINITY else min(config.max_connections, soft - used)
    if most < min(_FEWEST, config.max_connections):
        raise ConfigError(f"only {soft} files can be open at once; allow more, e.g. with `ulimit -n {wanted}`")
    return most
