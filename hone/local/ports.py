"""Loopback ports for programs that cannot bind port 0 and report it themselves."""

import socket
from collections.abc import Iterable
from contextlib import ExitStack

from hone.errors import ConfigError


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback TCP ports that were free a moment ago; nothing reserves them afterwards."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether a server could listen on `port` now (sockets in TIME_WAIT do not hinder it)."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def require_free(ports: Iterable[tuple[str, int]], host: str = "127.0.0.1") -> None:
    """Check the ports of named parts before anything is started.

    Raises:
        ConfigError: at least one is taken; the message names the part and the port.
    """
    taken = [f"{name} wants port {port}" for name, port in ports if not is_free(port, host)]
    if taken:
        raise ConfigError(f"port in use: {', '.join(taken)}; stop what listens there or configure another port")
