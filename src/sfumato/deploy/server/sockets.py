"""Sockets to listen on; bound before anything heavy is loaded, so that a port in use is told at once."""

import socket

from sfumato.errors import ConfigError

__all__ = ["address_of", "listen", "reserve", "with_port"]

_BACKLOG = 2048


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A bound, listening socket.

    Raises:
        ConfigError: the address is taken, or no address of this machine.
    """
    try:
        return socket.create_server((host, port), family=_family(host), backlog=_BACKLOG)
    except OSError as error:
        raise _taken(host, port, option, error) from error


def reserve(host: str, port: int, option: str = "--grpc-port") -> socket.socket:
    """A socket that is bound and does not listen: the port is ours, processes that share it get the connections.

    Raises:
        ConfigError: the address is taken, or no address of this machine.
    """
    sock = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        # Without sharing first: a port that another server shares is taken all the same.
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _taken(host, port, option, error) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """host:port of a bound socket."""
    host, port = sock.getsockname()[:2]
    return with_port(host, port)


def with_port(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _taken(host: str, port: int, option: str, error: OSError) -> ConfigError:
    return ConfigError(f"cannot listen on {host}:{port} ({error.strerror or error}); choose another {option} or --host")
