"""A client of the Kubernetes API for custom resources: read, create, JSON patch, delete; nothing else of Kubernetes.

Answers are sorted into what a caller does next. A request whose answer never came may have been carried out: callers
read again before they write again.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from hone.errors import ConfigError, HoneError, Retryable

Manifest = dict[str, Any]

TIMEOUT_S = 5.0
MESSAGE_END = 250
NO_ACCESS = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})


class Stale(HoneError):
    """Somebody else changed the object meanwhile (409), or the patch's test failed (422): read it again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of custom resource."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of an object, or of all objects in the namespace."""
        return f"/apis/{self.group}/{self.version}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


class KubeApi:
    """Objects of one namespace. Use as a context manager: it holds connections."""

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`token_file` is read before each request: Kubernetes replaces tokens while a program runs."""
        self.url, self.namespace, self.token_file = url.rstrip("/"), namespace, token_file
        verify = trust(ca_file) if ca_file is not None else True
        self._was_let_in = False
        self._client = httpx.Client(timeout=TIMEOUT_S, transport=transport, verify=verify, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def get(self, kind: Kind, name: str) -> Manifest | None:
        """Return the object, or None where there is none."""
        answer = self._send("GET", kind.path(self.namespace, name))
        if is_missing(answer):
            self._was_let_in = True
            return None
        return self._document(answer)

    def list(self, kind: Kind, label: str) -> list[Manifest]:
        """Return the objects that carry this label (`key=value`)."""
        answer = self._send("GET", kind.path(self.namespace), params={"labelSelector": label})
        return list(self._document(answer)["items"])

    def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create the object; fields that its schema does not know are refused.

        Raises:
            Stale: there is one of this name.
        """
        answer = self._send("POST", kind.path(self.namespace), json=manifest, params={"fieldValidation": "Strict"})
        return self._document(answer)

    def patch(self, kind: Kind, name: str, steps: Sequence[Manifest]) -> Manifest:
        """Apply a JSON patch (RFC 6902), all of it or nothing.

        Raises:
            Stale: a `test` of it failed, the object is gone, or the result is not valid.
        """
        answer = self._send(
            "PATCH",
            kind.path(self.namespace, name),
            json=list(steps),
            params={"fieldValidation": "Strict"},
            headers={"Content-Type": "application/json-patch+json"},
        )
        return self._document(answer)

    def delete(self, kind: Kind, name: str, version: str | None = None) -> None:
        """Delete the object, if it still has this resourceVersion; nothing happens where there is none.

        Raises:
            Stale: it has another one.
        """
        options = {} if version is None else {"preconditions": {"resourceVersion": version}}
        answer = self._send("DELETE", kind.path(self.namespace, name), json=options)
        if not is_missing(answer):
            self._document(answer)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self._token(self.token_file)}"
        try:
            return self._client.request(method, self.url + path, headers=headers, **options)
        except httpx.TransportError as error:
            raise Retryable(f"the Kubernetes API at {self.url} does not answer ({error!r})") from None

    def _token(self, file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"cannot read the token {file} ({error.strerror}): set seldon.token_file") from None

    def _document(self, answer: httpx.Response) -> Manifest:
        """Return the body of a success; sort everything else.

        Raises:
            ConfigError: we are refused, and never were let in. Later it passes: an API server that has just started
                refuses everybody until it knows its roles and accounts.
        """
        if answer.is_success:
            self._was_let_in = True
            return dict(answer.json())
        request = answer.request
        what = f"{request.method} {request.url.path}: {answer.status_code} {message_of(answer)}"
        if answer.status_code == httpx.codes.NOT_FOUND and not is_missing(answer):
            raise Retryable(f"{what}: the cluster does not serve this kind; install the Seldon Core of traffic_backend")
        if answer.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.NOT_FOUND):
            raise Stale(what)
        if answer.status_code in NO_ACCESS and "admission webhook" not in what:
            raise (Retryable if self._was_let_in else ConfigError)(
                f"{what}: give hone's service account the role of deploy/seldon/rbac.yaml"
            )
        raise Retryable(what)


def trust(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts this authority alone, and checks names and dates."""
    context = ssl.create_default_context(cafile=str(ca_file))
    # From Python 3.13 on, certificates must name their authority's key. Those of EKS and MicroK8s do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def is_missing(answer: httpx.Response) -> bool:
    """Say whether there is no such object; for a kind that nobody serves the server's 404 is no Status."""
    return answer.status_code == httpx.codes.NOT_FOUND and isinstance(document_of(answer), dict)


def document_of(answer: httpx.Response) -> Any:
    """Return the body of an answer, as text where it is not JSON."""
    try:
        return answer.json()
    except ValueError:
        return answer.text


def message_of(answer: httpx.Response) -> str:
    """Return the message of a Kubernetes Status, or the body; of a long one, which repeats the object, both ends."""
    found = document_of(answer)
    message = str(found.get("message", found) if isinstance(found, dict) else found).strip()
    return message if len(message) <= 2 * MESSAGE_END else f"{message[:MESSAGE_END]} … {message[-MESSAGE_END:]}"
