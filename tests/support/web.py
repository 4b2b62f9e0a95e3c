"""Serve an ASGI application of ours from a thread, on a free port, for the length of a block."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.server import DEFAULT_LIMITS, Limits, make_server


@contextmanager
def serving(app: Any, limits: Limits = DEFAULT_LIMITS) -> Iterator[str]:
    """Give the address of the running application."""
    server = make_server(app, "127.0.0.1", 0, limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server ended before it was ready"
        assert time.monotonic() < deadline, "the server was not ready in 30 s"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        assert not thread.is_alive(), "the server did not stop"
