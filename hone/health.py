"""`/metrics` and `/healthz` of the programs that have no HTTP of their own."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from hone.errors import ConfigError


class Pulse:
    """A sign of life that a program's loop gives; a loop that hangs stops giving it."""

    def __init__(self, max_age_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_age_s = max_age_s
        self.clock = clock
        self.last = clock()

    def beat(self) -> None:
        """Say that the loop is alive now."""
        self.last = self.clock()

    def is_alive(self) -> bool:
        """Say whether the last beat is at most `max_age_s` old."""
        return self.clock() - self.last <= self.max_age_s


def serve_health(port: int, pulse: Pulse, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Serve both paths from a daemon thread; port 0 takes a free one, see `server_port` of the result.

    Raises:
        ConfigError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
            elif self.path == "/healthz":
                alive = pulse.is_alive()
                self._answer(200 if alive else 503, "text/plain", b"ok\n" if alive else b"the loop hangs\n")
            else:
                self._answer(404, "text/plain", b"/metrics or /healthz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent: a probe every few seconds is no news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {host}:{port} ({error.strerror}): choose another --metrics-port"
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
