"""A headless Chromium, driven through chromedriver's own protocol (W3C WebDriver over HTTP)."""

import base64
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from hone.local.ports import free_ports

QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self.http, self.session = http, session

    def call(self, command: str, **body: Any) -> Any:
        answer = self.http.post(f"/session/{self.session}/{command}", json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def open(self, url: str) -> None:
        self.call("url", url=url)

    def run(self, code: str, *args: Any) -> Any:
        """Run the body of an asynchronous function with `args`; its result, or its error as an assertion."""
        wrapped = (
            f"const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);"
            f"(async (...args) => {{ {code} }})(...args).then((v) => done([true, v]), (e) => done([false, String(e)]));"
        )
        ended_well, value = self.call("execute/async", script=wrapped, args=list(args))
        assert ended_well, value
        return value

    def until(self, condition: str, timeout_s: float = 20) -> None:
        """Wait until an expression of the page holds."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"return Boolean({condition});"):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        answer = self.http.get(f"/session/{self.session}/screenshot")
        path.write_bytes(base64.b64decode(answer.json()["value"]))


@contextmanager
def chromium(profile: Path, width: int = 1000, height: int = 900) -> Iterator[Browser]:
    port = free_ports(1)[0]
    driver = subprocess.Popen(["chromedriver", f"--port={port}", "--log-level=SEVERE"])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            deadline = time.monotonic() + 30
            while not answers(http):
                assert time.monotonic() < deadline, "chromedriver does not answer"
                time.sleep(0.05)
            args = [*QUIET, *OFFLINE, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
            options = {"browserName": "chrome", "goog:chromeOptions": {"args": args}}
            made = http.post("/session", json={"capabilities": {"alwaysMatch": options}})
            assert made.is_success, made.text
            session = made.json()["value"]["sessionId"]
            yield Browser(http, session)
            http.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(10)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/status").is_success
    except httpx.TransportError:
        return False


@contextmanager
def empty_page() -> Iterator[str]:
    """A page with nothing in it, on an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><title>app</title>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
