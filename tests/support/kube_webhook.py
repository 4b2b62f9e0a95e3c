"""Seldon's webhook for SeldonDeployments before the real API server: our rules of it, over TLS, failing closed."""

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.cluster.rules import V1, v1_refusal
from tests.support.kube_server import KubeServer, succeeded

NAME = "v1.vseldondeployment.kb.io"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


class Handler(BaseHTTPRequestHandler):
    """Answers an AdmissionReview as the controller-runtime of Seldon 1.17.1 does: Invalid, 422."""

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = review["request"]
        problem = v1_refusal(asked["object"])
        answer: dict[str, Any] = {"uid": asked["uid"], "allowed": problem is None}
        if problem is not None:
            message = f'SeldonDeployment.machinelearning.seldon.io "{asked["name"]}" is invalid: {problem}'
            answer["status"] = {"status": "Failure", "reason": "Invalid", "code": 422, "message": message}
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running_webhook(server: KubeServer, directory: Path) -> Iterator[None]:
    """Let the API server ask our rules about each SeldonDeployment for the length of the block."""
    certificate, context = make_certificate(directory), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, directory / "webhook.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{httpd.server_port}/"
        with server.client() as admin:
            succeeded(admin.post(CONFIGURATIONS, json=configuration(url, certificate.read_bytes())))
        yield
        httpd.shutdown()


def make_certificate(directory: Path) -> Path:
    certificate = directory / "webhook.crt"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make += ["-keyout", str(directory / "webhook.key"), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    return certificate


def configuration(url: str, authority: bytes) -> dict[str, Any]:
    rule = {
        "apiGroups": ["machinelearning.seldon.io"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [V1],
    }
    webhook = {
        "name": NAME,
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": url, "caBundle": base64.b64encode(authority).decode()},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "seldon-validating-webhook"},
        "webhooks": [webhook],
    }
