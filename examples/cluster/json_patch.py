"""JSON patch (RFC 6902: add, replace, remove, test) and JSON merge patch (RFC 7386)."""

import copy
from typing import Any


class PatchFailed(Exception):
    """A step cannot be taken, or a test failed: nothing is changed."""


def apply_patch(document: Any, steps: list[dict[str, Any]]) -> Any:
    """Return the document after all steps."""
    result = copy.deepcopy(document)
    for step in steps:
        path = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        if not path:
            raise PatchFailed("the root cannot be patched")
        parent = result
        for part in path[:-1]:
            parent = child(parent, part)
        take(parent, path[-1], step)
    return result


def child(parent: Any, key: str) -> Any:
    """Return a member of an object or list."""
    try:
        return parent[int(key)] if isinstance(parent, list) else parent[key]
    except (KeyError, IndexError, ValueError, TypeError):
        raise PatchFailed(f"there is no {key!r}") from None


def take(parent: Any, key: str, step: dict[str, Any]) -> None:
    """Take one step at its place."""
    if step["op"] == "test":
        if child(parent, key) != step["value"]:
            raise PatchFailed(f"testing {step['path']} failed")
    elif step["op"] == "remove":
        child(parent, key)
        del parent[int(key) if isinstance(parent, list) else key]
    elif step["op"] in ("add", "replace"):
        if step["op"] == "replace":
            child(parent, key)
        put(parent, key, copy.deepcopy(step["value"]), insert=step["op"] == "add")
    else:
        raise PatchFailed(f"operation {step['op']!r} is not known here")


def put(parent: Any, key: str, value: Any, *, insert: bool) -> None:
    """Set a member; in a list `-` is its end, and adding shifts what follows."""
    if isinstance(parent, dict):
        parent[key] = value
    elif key == "-":
        parent.append(value)
    elif insert:
        parent.insert(int(key), value)
    else:
        parent[int(key)] = value


def merge(document: Any, patch: Any) -> Any:
    """Return the document after a merge patch: null removes, lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result
