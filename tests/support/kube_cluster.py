"""The cluster of the tests over a real API server: only Seldon's operators, their arms and the faults are ours.

The server stores, validates, versions and authorises. A helper plays the operators: it writes statuses through the
status subresource, before and after each request, so that a test never waits.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from examples.cluster.api import Answer, Cluster
from examples.cluster.faults import Fault, Faults
from examples.cluster.operator import Arms, Operator
from examples.cluster.rules import RESOURCES
from examples.cluster.store import Key, Manifest
from tests.support.kube_server import NAMESPACE, KubeServer, succeeded

GROUPS = {one.plural: one.api_version for one in RESOURCES}
MERGE = {"Content-Type": "application/merge-patch+json"}


class KubeStore:
    """What the stand-in's store offers to operators and tests, read from the server and written to it."""

    def __init__(self, server: KubeServer) -> None:
        self.client = server.client()
        self.before: dict[Key, Manifest] = {}
        "Each object as it was before the last write to it."
        self.seen: dict[Key, Manifest] = {}

    @property
    def objects(self) -> dict[Key, Manifest]:
        found = {}
        for plural in GROUPS:
            for item in succeeded(self.client.get(path_of(plural)))["items"]:
                found[plural, NAMESPACE, str(item["metadata"]["name"])] = item
        return found

    @property
    def last(self) -> int:
        """The newest resource version of any object."""
        return max((int(item["metadata"]["resourceVersion"]) for item in self.objects.values()), default=0)

    def all(self, plural: str, namespace: str | None = None) -> Iterator[Manifest]:
        """The objects of a kind as they were when the operators last looked."""
        return (item for (kind, _, _), item in self.seen.items() if kind == plural)

    def patch(self, key: Key, patch: Manifest, kind: str) -> Manifest:
        """Edit an object as somebody else would."""
        assert kind == "merge"
        return succeeded(self.client.patch(path_of(*key), json=patch, headers=MERGE))

    def set_status(self, key: Key, status: Manifest) -> None:
        """Write the status as the operator does: over what it has read, else at its next look."""
        if self.seen[key].get("status") == status:
            return
        changed = self.seen[key] | {"status": status}
        answer = self.client.put(f"{path_of(*key)}/status", json=changed, params={"fieldValidation": "Strict"})
        assert answer.is_success or answer.status_code in (httpx.codes.CONFLICT, httpx.codes.NOT_FOUND), answer.text

    def clear(self) -> None:
        """Delete every object."""
        for plural in GROUPS:
            succeeded(self.client.delete(path_of(plural)))


class KubeOperator(Operator):
    """The operators, who look at all objects at once."""

    def __init__(self, kube: KubeStore, arms: Arms, faults: Faults) -> None:
        super().__init__(kube, arms, faults)
        self.kube = kube

    def reconcile(self) -> None:
        self.kube.seen = self.kube.objects
        super().reconcile()


class KubeCluster(Cluster):
    """The stand-in's traffic and faults over the real server; `token` is whose rights requests have that bring none."""

    def __init__(self, server: KubeServer, token: str, **options: Any) -> None:
        super().__init__(**options)
        self.server, self.token = server, token
        self.kube = KubeStore(server)
        self.kube.clear()
        self.store: Any = self.kube
        self.operator = KubeOperator(self.kube, self.arms, self.faults)
        self.client = httpx.Client(base_url=server.url, verify=server.trust(), trust_env=False, timeout=20)

    def close(self) -> None:
        self.client.close()
        self.kube.client.close()

    @contextmanager
    def operators(self, pause_s: float = 0.1) -> Iterator[None]:
        """Let the operators look by themselves for the length of the block: requests may go to the server directly."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(pause_s):
                with self._lock:
                    self.operator.reconcile()

        thread = threading.Thread(target=look)
        thread.start()
        yield
        stop.set()
        thread.join()

    def _respond(
        self, method: str, path: str, params: Mapping[str, str], kind: str, body: bytes, fault: Fault | None
    ) -> Answer:
        if fault in (Fault.ERROR, Fault.CONFLICT) or path == "/api/v1/query":
            return super()._respond(method, path, params, kind, body, fault)
        key = key_in(path)
        before = self.kube.before
        if fault is Fault.STALE_READ and key in before:
            return 200, before[key]
        if key is not None and method != "GET" and (found := self.kube.client.get(path)).is_success:
            before[key] = found.json()
        dry = {"dryRun": "All"} if self.faults.forgets and method in ("PATCH", "PUT") else {}
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        answer = self.client.request(method, path, params={**params, **dry}, headers=headers, content=body)
        return answer.status_code, document_of(answer)

    def watch(self, plural: str, since: int) -> list[tuple[int, str, Manifest]]:
        """What happened to objects of a kind after this resource version, from a watch of one second."""
        options = {"watch": "1", "resourceVersion": str(since), "timeoutSeconds": "1"}
        lines = self.kube.client.get(path_of(plural), params=options).text.splitlines()
        events = [json.loads(line) for line in lines]
        return [(int(one["object"]["metadata"]["resourceVersion"]), one["type"], one["object"]) for one in events]


def document_of(answer: httpx.Response) -> Any:
    """The body; the server answers in plain text for what it does not serve at all."""
    return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


def path_of(plural: str, namespace: str = NAMESPACE, name: str = "") -> str:
    return f"/apis/{GROUPS[plural]}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def key_in(path: str) -> Key | None:
    parts = path.strip("/").split("/")
    return (parts[5], parts[4], parts[6]) if len(parts) == 7 else None
