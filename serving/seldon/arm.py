"""One arm's runtime as a child process, for wrappers whose environment cannot hold transformers.

Standard library only: it is imported in environments that hold nothing of hone's.
"""

import atexit
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1


class ArmFailed(Exception):
    """The runtime did not answer, or refused. `status` is its HTTP status, 503 where it gave none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class ArmRuntime:
    """`python -m serving runtime` with one model, on loopback. It dies with the process that made it."""

    def __init__(self, version: str, directory: str, python: str) -> None:
        """Start it and wait until the version answers; `python` is the interpreter of hone's environment.

        Raises:
            ArmFailed: it ended, or did not answer in time.
        """
        self.version, self.directory = version, directory
        self.port, self._owner, self._stopping = free_port(), os.getpid(), False
        self._local = threading.local()
        self._process = start(python, version, directory, self.port)
        atexit.register(self.stop)
        self.digest = self._await_digest()

    def _await_digest(self) -> str:
        """Return the digest of the weights that the runtime has loaded."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self._process.poll() is not None:
                raise ArmFailed(
                    503, f"the runtime of {self.version} ended with {self._process.returncode}: read its log"
                )
            try:
                models = self._exchange("GET", "/v1/models", None)["data"]
                return str(next(model["digest"] for model in models if model["id"] == self.version))
            except (ArmFailed, StopIteration):
                if time.monotonic() > deadline:
                    self.stop()
                    raise ArmFailed(
                        503, f"the runtime of {self.version} is not ready in {START_TIMEOUT_S:g} s"
                    ) from None
                time.sleep(POLL_S)

    def end_with_it(self) -> None:
        """From now on: when the runtime ends by itself, end this process too, so that Kubernetes starts both anew."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        self._process.wait()
        if not self._stopping:
            os.kill(self._owner, signal.SIGTERM)

    def chat(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a chat request in OpenAI's shape, whole; it is this version that answers.

        Raises:
            ArmFailed: the runtime refused (its status), or did not answer (503).
        """
        return self._exchange("POST", "/v1/chat/completions", request | {"model": self.version, "stream": False})

    def is_ready(self) -> bool:
        """Say whether the version answers now."""
        try:
            return any(model["id"] == self.version for model in self._exchange("GET", "/v1/models", None)["data"])
        except ArmFailed:
            return False

    def _exchange(self, method: str, path: str, document: dict[str, Any] | None) -> dict[str, Any]:
        """Send one request over this thread's connection; one that had gone stale is opened anew."""
        body = None if document is None else json.dumps(document).encode()
        for is_last in (False, True):
            kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
            connection = kept or http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
            self._local.connection = connection
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                return read(answer.status, answer.read())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._local.connection = None
                if is_last or kept is None:
                    raise ArmFailed(503, f"the runtime of {self.version} does not answer ({error!r})") from None
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the runtime; forked children of the owner leave it alone. Nothing happens the second time."""
        if os.getpid() != self._owner or self._stopping:
            return
        self._stopping = True
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def read(status: int, body: bytes) -> dict[str, Any]:
    """Return the document of a success; raise ArmFailed with the runtime's own words otherwise."""
    document: dict[str, Any] = json.loads(body)
    if status != 200:
        raise ArmFailed(status, str(document.get("detail") or document))
    return document


def start(python: str, version: str, directory: str, port: int) -> "subprocess.Popen[bytes]":
    """Start the runtime of a version; when this process dies, even by SIGKILL, it gets SIGTERM (on Linux)."""
    words = ["serving", "runtime", "--port", str(port), "--model", f"{version}={directory}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        [python, "-m", *words],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
