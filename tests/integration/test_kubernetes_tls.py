"""Certificates as managed clusters have them: no key identifiers, which newer Pythons ask for."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from hone.errors import Retryable
from serving.traffic.kube_api import KubeApi
from serving.traffic.seldon_v2 import MODELS

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
BARE = "subjectKeyIdentifier = none\nauthorityKeyIdentifier = none\n"
SETTINGS = f"""[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
{BARE}[server]
subjectAltName = IP:127.0.0.1
{BARE}"""


class Empty(BaseHTTPRequestHandler):
    """An API server without objects."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b'{"kind": "Status"}')

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    (tmp_path / "settings").write_text(SETTINGS)
    for make in (
        (
            "req",
            "-x509",
            *NEW_KEY,
            "-subj",
            "/CN=kubernetes",
            "-extensions",
            "authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ),
        ("req", "-new", *NEW_KEY, "-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.csr"),
    ):
        subprocess.run(["openssl", *make, "-config", "settings"], cwd=tmp_path, check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    sign += ["-extfile", "settings", "-extensions", "server", "-out", "server.crt"]
    subprocess.run(sign, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "ca.crt"


@pytest.fixture
def url(authority: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.with_name("server.crt"), authority.with_name("server.key"))
    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def as_in_python_3_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults of contexts from Python 3.13 on."""
    make = ssl.create_default_context

    def strict(*args: Any, **options: Any) -> ssl.SSLContext:
        context = make(*args, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


@pytest.mark.usefixtures("as_in_python_3_13")
def test_an_authority_without_key_identifiers_is_trusted_and_no_other(authority: Path, url: str) -> None:
    with pytest.raises(httpx.ConnectError, match=r"(?i)key identifier"):
        httpx.get(url, verify=ssl.create_default_context(cafile=str(authority)), trust_env=False)
    with KubeApi(url, "hone", ca_file=authority) as api:
        assert api.get(MODELS, "m") is None
    with KubeApi(url, "hone") as api, pytest.raises(Retryable, match="CERTIFICATE_VERIFY_FAILED"):
        api.get(MODELS, "m")
    elsewhere = url.replace("127.0.0.1", "localhost")
    with KubeApi(elsewhere, "hone", ca_file=authority) as api, pytest.raises(Retryable, match="mismatch"):
        api.get(MODELS, "m")
