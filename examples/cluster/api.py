"""The API server: requests in, answers out, without a socket; `transport` puts it behind an httpx client."""

import copy
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import httpx

from examples.cluster.faults import Fault, Faults
from examples.cluster.operator import Arms, Operator, SimulatedArms, Split
from examples.cluster.rules import RESOURCES
from examples.cluster.spoken import Spoken
from examples.cluster.store import Check, Manifest, Refused, Store

PATH = re.compile(r"/apis/([^/]+)/([^/]+)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?")
PATCHES = ("application/json-patch+json", "application/merge-patch+json")
Answer = tuple[int, Any]


class Cluster:
    """One namespace-scoped API, Seldon's operators behind it, and the traffic that they split. Threads may share it."""

    def __init__(
        self,
        *,
        schemas: Mapping[str, Check] | None = None,
        clock: Callable[[], float] = time.monotonic,
        arms: Callable[[Callable[[], float]], Arms] = SimulatedArms,
        seed: int = 1,
    ) -> None:
        """`schemas` check objects by plural, before the webhooks do."""
        resources = {one.plural: with_schema(one, (schemas or {}).get(one.plural)) for one in RESOURCES}
        self.store, self.faults = Store(resources), Faults()
        self.arms = arms(clock)
        self.operator = Operator(self.store, self.arms, self.faults)
        self.requests: Counter[tuple[str, bool]] = Counter()
        "Served so far, by version, and whether the caller named its arm."
        self.spoken: Counter[Spoken] = Counter()
        "Answers of real arms so far, with the weights that they came from."
        self.calls: list[tuple[str, str]] = []
        "Method and path of every request of the API that arrived."
        self._rng = random.Random(seed)
        self._lock = threading.RLock()

    # The API ----------------------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, params: Mapping[str, str], kind: str, body: bytes) -> Answer:
        """Answer one request.

        Raises:
            httpx.TransportError: its answer, or the request itself, is lost.
        """
        with self._lock:
            fault = self.faults.take(method)
            if fault is Fault.NO_ANSWER:
                raise httpx.ConnectTimeout("the request never arrived")
            self.calls.append((method, path))
            self.operator.reconcile()
            try:
                answer = self._respond(method, path, params, kind, body, fault)
            except Refused as error:
                status = {"kind": "Status", "status": "Failure", "code": error.code, "reason": error.reason}
                answer = error.code, status | {"message": error.message}
            self.operator.reconcile()
            if fault is Fault.LOST_ANSWER:
                raise httpx.ReadTimeout("the answer never arrived")
            return answer

    def _respond(
        self, method: str, path: str, params: Mapping[str, str], kind: str, body: bytes, fault: Fault | None
    ) -> Answer:
        if fault is Fault.ERROR:
            raise Refused(500, "InternalError", "etcdserver: request timed out")
        if fault is Fault.CONFLICT:
            raise Refused(409, "Conflict", "the object has been modified")
        if path == "/api/v1/query":
            return 200, self._counted()
        found = PATH.fullmatch(path)
        resource = None if found is None else self.store.resources.get(found[4])
        if found is None or resource is None or resource.api_version != f"{found[1]}/{found[2]}":
            return 404, "404 page not found\n"  # a kind that nobody serves gets no Status
        document = json.loads(body) if body else {}
        if found[5] is None:
            return self._many(method, found[4], found[3], params, document)
        return self._one(method, (found[4], found[3], found[5]), kind, document, fault)

    def _many(self, method: str, plural: str, namespace: str, params: Mapping[str, str], document: Any) -> Answer:
        if method == "POST":
            return 201, self.store.create(plural, namespace, document)
        if method != "GET":
            raise Refused(405, "MethodNotAllowed", f"{method} of a collection")
        selector = dict(term.split("=", 1) for term in params.get("labelSelector", "").split(",") if term)
        items = [
            copy.deepcopy(manifest)
            for manifest in self.store.all(plural, namespace)
            if selector.items() <= (manifest["metadata"].get("labels") or {}).items()
        ]
        return 200, {"kind": "List", "metadata": {"resourceVersion": str(self.store.last)}, "items": items}

    def _one(self, method: str, key: tuple[str, str, str], kind: str, document: Any, fault: Fault | None) -> Answer:
        if method == "GET":
            before = self.store.before.get(key)
            is_stale = fault is Fault.STALE_READ and before is not None
            return 200, copy.deepcopy(before if is_stale else self.store.require(key))
        if method == "DELETE":
            self.store.delete(key, document.get("preconditions") or {})
            return 200, {"kind": "Status", "status": "Success"}
        if method == "PATCH" and kind not in PATCHES:
            raise Refused(415, "UnsupportedMediaType", f"patches of type {kind!r}")
        if method not in ("PATCH", "PUT"):
            raise Refused(405, "MethodNotAllowed", method)
        objects, events = dict(self.store.objects), len(self.store.events)
        changed = self.store.patch(key, document, kind) if method == "PATCH" else self.store.replace(key, document)
        if self.faults.forgets:
            self.store.objects = objects
            del self.store.events[events:]
        return 200, changed

    def watch(self, plural: str, since: int) -> list[tuple[int, str, Manifest]]:
        """Return what happened to objects of a kind after this resource version."""
        with self._lock:
            self.operator.reconcile()
            return self.store.since(plural, since)

    def transport(self) -> httpx.MockTransport:
        """Return what lets an httpx client speak to this cluster without a socket."""

        def respond(request: httpx.Request) -> httpx.Response:
            kind = request.headers.get("content-type", "")
            code, document = self.handle(
                request.method, request.url.path, dict(request.url.params), kind, request.read()
            )
            return httpx.Response(code, json=document)

        return httpx.MockTransport(respond)

    # Traffic ----------------------------------------------------------------------------------------------------------

    def split_of(self, name: str, namespace: str = "hone") -> Split | None:
        """Return what the data plane does with callers that name no arm."""
        self.operator.reconcile()
        return self.operator.in_effect.get((namespace, name))

    def draw(self, name: str, namespace: str = "hone") -> str | None:
        """Return the arm that the lot gives to a caller who names none; None where nothing serves."""
        with self._lock:
            split = self.split_of(name, namespace)
            return None if split is None else self._lot(split)

    def endpoint_of(self, model: str, namespace: str = "hone") -> str:
        """Return the arm behind a model's own endpoint; one that is an Experiment's default is drawn like the rest."""
        with self._lock:
            self.operator.reconcile()
            splits = [split for (space, _), split in self.operator.in_effect.items() if space == namespace]
            return next((self._lot(split) for split in splits if split.default == model), model)

    def _lot(self, split: Split) -> str:
        arms, shares = zip(*split.shares, strict=True)
        return str(self._rng.choices(arms, shares)[0])

    def send_unkeyed(self, name: str, num: int = 1, namespace: str = "hone") -> list[str]:
        """Let callers who name no arm come in; return the versions that answered."""
        with self._lock:
            split = self.split_of(name, namespace)
            if split is None:
                raise LookupError(f"nothing serves {name}")
            return [self._serve(self._lot(split), keyed=False) for _ in range(num)]

    def send_keyed(self, arm: str, namespace: str = "hone") -> str:
        """Let a caller name an arm; return the version that answered."""
        with self._lock:
            return self._serve(self.endpoint_of(arm, namespace), keyed=True)

    def _serve(self, arm: str, *, keyed: bool) -> str:
        if not self.arms.is_ready(arm):
            raise LookupError(f"{arm} does not answer")
        version = self.version_of(arm)
        self.requests[version, keyed] += 1
        return version

    def version_of(self, arm: str) -> str:
        """Return the version that an arm serves."""
        return next(found.version for name, found in self.operator.wanted_arms() if name == arm)

    def _counted(self) -> Manifest:
        """Return the counts of unkeyed requests as Prometheus answers a query."""
        result: Iterable[Manifest] = [
            {"metric": {"version": version}, "value": [0.0, str(num)]}
            for (version, keyed), num in sorted(self.requests.items())
            if not keyed
        ]
        return {"status": "success", "data": {"resultType": "vector", "result": list(result)}}


def with_schema(resource: Any, schema: Check | None) -> Any:
    """Return the resource with its schema checked before its webhook."""
    return resource if schema is None else replace(resource, checks=(schema, *resource.checks))
