"""Writing an object that several controllers may know: only the newest fence writes, and only over what it has read."""

import time
from collections.abc import Callable

from hone.errors import Fenced, Retryable
from serving.traffic.kube_api import Kind, KubeApi, Manifest, Stale
from serving.traffic.kubernetes import FENCE_ANNOTATION

ATTEMPTS = 4
PAUSE_S = 0.05

Render = Callable[[Manifest | None], Manifest | None]
"""From the object as it is (None: there is none) to the object as it shall be (None: leave it)."""


def fence_of(manifest: Manifest | None) -> int:
    """Return the fence of the plan that the object carries; -1 where it carries none."""
    annotations = {} if manifest is None else manifest["metadata"].get("annotations") or {}
    text = str(annotations.get(FENCE_ANNOTATION, ""))
    return int(text) if text.isdecimal() else -1


def write_fenced(
    api: KubeApi,
    kind: Kind,
    name: str,
    render: Render,
    *,
    fence: int | None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Bring the object to what `render` returns; return whether anything had to be written.

    Every write is a JSON patch that tests the resourceVersion which was read: what changed meanwhile is read again and
    rendered anew. `fence` None is for writes that move no traffic. After a write without an answer the object is read
    before it is written again, so that the same write is never made twice.

    Raises:
        Fenced: the object carries a larger fence.
        Retryable: the API does not answer, the object changed under every attempt, or the cluster refuses it.
    """
    written, found = False, "nothing was tried"
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            current = api.get(kind, name)
            refuse_older(current, fence, name)
            desired = render(current)
            if desired is None or not (steps := difference(current, desired)):
                return written
            written = True
            api.create(kind, desired) if current is None else api.patch(kind, name, steps)
            return True
        except (Stale, Retryable) as error:
            found = str(error)
    raise Retryable(f"{kind.plural}/{name} was not written in {ATTEMPTS} attempts: {found}")


def refuse_older(current: Manifest | None, fence: int | None, name: str) -> None:
    """Raise Fenced if the object follows a newer plan."""
    if fence is not None and fence_of(current) > fence:
        raise Fenced(f"{name} follows plan {fence_of(current)}, ours is {fence}: a newer controller is at work")


def difference(current: Manifest | None, desired: Manifest) -> list[Manifest]:
    """Return the JSON patch from the object to what it shall be; labels and annotations of others stay."""
    if current is None:
        return [{"op": "add", "path": "", "value": desired}]
    steps: list[Manifest] = []
    for part in ("labels", "annotations"):
        before = current["metadata"].get(part) or {}
        ours = {key: value for key, value in before.items() if not key.startswith("hone/")}
        after = ours | desired["metadata"].get(part, {})
        if after != before:
            steps.append({"op": "add", "path": f"/metadata/{part}", "value": after})
    if current.get("spec") != desired["spec"]:
        steps.append({"op": "replace", "path": "/spec", "value": desired["spec"]})
    if not steps:
        return []
    version = current["metadata"]["resourceVersion"]
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *steps]
