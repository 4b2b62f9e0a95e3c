"""Custom resources as an API server keeps them: versions, generations, conflicts, and a log of what happened."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.cluster.json_patch import PatchFailed, apply_patch, merge

Manifest = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""
Check = Callable[[Manifest], str | None]
"""Why an object is not valid, or None."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
FIXED = ("name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp")


class UnknownField(str):
    """Why an object is not valid: it has a field that its schema does not know."""

    __slots__ = ()


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


@dataclass(frozen=True)
class Resource:
    """A kind that the server knows; `checks` are its schema and its webhook, `defaults` what else is filled in."""

    plural: str
    group: str
    version: str
    kind: str
    checks: tuple[Check, ...] = ()
    defaults: Callable[[Manifest], None] = lambda manifest: None

    @property
    def api_version(self) -> str:
        """Return what manifests say."""
        return f"{self.group}/{self.version}"


@dataclass
class Store:
    """All objects; every change gets the next resource version."""

    resources: Mapping[str, Resource]
    objects: dict[Key, Manifest] = field(default_factory=dict)
    before: dict[Key, Manifest | None] = field(default_factory=dict)
    "Each object as it was before its last change."
    events: list[tuple[int, str, str, Manifest]] = field(default_factory=list)
    "Resource version, plural, what happened, the object."
    last: int = 100

    def create(self, plural: str, namespace: str, manifest: Manifest) -> Manifest:
        """Add an object."""
        resource, made = self.resources[plural], copy.deepcopy(manifest)
        name = str(made.get("metadata", {}).get("name", ""))
        if not NAME.fullmatch(name):
            raise Refused(422, "Invalid", f"metadata.name: Invalid value: {name!r}")
        if (plural, namespace, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        made["metadata"] |= {"namespace": namespace, "uid": f"uid-{self.last + 1}", "generation": 1}
        made["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        made.pop("status", None)
        self._admit(resource, made, undecoded=400)
        return self._store((plural, namespace, name), made, "ADDED")

    def patch(self, key: Key, patch: Any, kind: str) -> Manifest:
        """Change an object by a JSON patch or a merge patch."""
        current = self.require(key)
        try:
            wanted = apply_patch(current, patch) if "json-patch" in kind else merge(current, patch)
        except PatchFailed as error:
            raise Refused(422, "Invalid", "the server rejected our request due to an error in our request") from error
        return self.replace(key, wanted, undecoded=422)

    def replace(self, key: Key, wanted: Manifest, undecoded: int = 400) -> Manifest:
        """Put an object in the place of the one of this name; its status stays."""
        current, wanted = self.require(key), copy.deepcopy(wanted)
        if not wanted["metadata"].get("resourceVersion"):
            raise Refused(422, "Invalid", "metadata.resourceVersion: Invalid value: 0: must be specified for an update")
        if str(wanted["metadata"].get("resourceVersion", "")) != current["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", f"{key[2]} has been modified; apply your changes to the latest version")
        wanted["metadata"] |= {name: current["metadata"][name] for name in FIXED}
        wanted.pop("status", None)
        if "status" in current:
            wanted["status"] = copy.deepcopy(current["status"])
        self._admit(self.resources[key[0]], wanted, undecoded)
        if wanted == current:
            return copy.deepcopy(current)
        if wanted["spec"] != current["spec"]:
            wanted["metadata"]["generation"] += 1
        return self._store(key, wanted, "MODIFIED")

    def set_status(self, key: Key, status: Manifest) -> None:
        """Change an object's status, as its operator does: the generation stays, the resource version does not."""
        if self.objects[key].get("status") != status:
            self._store(key, self.objects[key] | {"status": copy.deepcopy(status)}, "MODIFIED")

    def delete(self, key: Key, preconditions: Manifest) -> None:
        """Remove an object, if it still is what the preconditions say."""
        current = self.require(key)
        if any(current["metadata"][name] != value for name, value in preconditions.items()):
            raise Refused(409, "Conflict", f"Precondition failed: {preconditions}")
        self.last += 1
        self.before[key] = self.objects.pop(key)
        self.events.append((self.last, key[0], "DELETED", copy.deepcopy(current)))

    def require(self, key: Key) -> Manifest:
        """Return the object itself, not a copy."""
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def all(self, plural: str, namespace: str | None = None) -> Iterator[Manifest]:
        """Yield the objects of a kind, not copies."""
        for (kind, space, _), manifest in sorted(self.objects.items(), key=lambda item: item[0]):
            if kind == plural and namespace in (None, space):
                yield manifest

    def since(self, plural: str, version: int) -> list[tuple[int, str, Manifest]]:
        """Return what happened to objects of a kind after this resource version."""
        return [
            (number, event, made) for number, kind, event, made in self.events if kind == plural and number > version
        ]

    def _admit(self, resource: Resource, manifest: Manifest, undecoded: int) -> None:
        """Refuse what is not valid; `undecoded` is the code for a field that nobody knows."""
        what = f'{manifest.get("kind")} "{manifest["metadata"]["name"]}" is invalid'
        if (manifest.get("apiVersion"), manifest.get("kind")) != (resource.api_version, resource.kind):
            raise Refused(422, "Invalid", f"{what}: must be {resource.kind} of {resource.api_version}")
        resource.defaults(manifest)
        for check in resource.checks:
            if problem := check(manifest):
                unread = isinstance(problem, UnknownField) and undecoded == 400
                raise Refused(*((400, "BadRequest") if unread else (422, "Invalid")), f"{what}: {problem}")

    def _store(self, key: Key, manifest: Manifest, event: str) -> Manifest:
        self.last += 1
        self.before[key] = self.objects.get(key)
        manifest = manifest | {"metadata": manifest["metadata"] | {"resourceVersion": str(self.last)}}
        self.objects[key] = manifest
        self.events.append((self.last, key[0], event, copy.deepcopy(manifest)))
        return copy.deepcopy(manifest)
