"""Names, annotations and shares that manifests of both Seldon lines have in common."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from hone.records import TrafficPlan

Manifest = dict[str, Any]

FENCE_ANNOTATION = "hone/fence"
ATTEMPT_ANNOTATION = "hone/attempt"
VERSION_ANNOTATION = "hone/model-version"
ROLLOUT_LABEL = "hone/rollout"
OURS = ("app.kubernetes.io/managed-by", "hone")
MAX_NAME = 63


def resource_name(prefix: str, version: str, limit: int = MAX_NAME) -> str:
    """Return a DNS-1123 label for a model version; one that had to be changed carries a hash, so that none collide."""
    plain = re.sub(r"[^a-z0-9-]+", "-", f"{prefix}-{version}".lower()).strip("-")
    if plain == f"{prefix}-{version}" and len(plain) <= limit:
        return plain
    digest = hashlib.sha256(f"{prefix}-{version}".encode()).hexdigest()[:8]
    return f"{plain[: limit - 9].rstrip('-')}-{digest}"


def metadata(name: str, namespace: str, plan: TrafficPlan, attempt: int = 0) -> Manifest:
    """Return metadata that says which plan the object carries. A custom resource does not expire by itself."""
    annotations = {FENCE_ANNOTATION: str(plan.fence)}
    if attempt:
        annotations[ATTEMPT_ANNOTATION] = str(attempt)
    labels = dict([OURS])
    if plan.rollout_id is not None:
        labels[ROLLOUT_LABEL] = str(plan.rollout_id)
    return {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}


def parts_of(weight: float, whole: int) -> int:
    """Return the canary's part of `whole`, rounded.

    Raises:
        ValueError: the weight is no share, or is not 0 or 1 and rounds to one of them.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"canary_weight = {weight} is not a share: give 0 to 1")
    parts = round(weight * whole)
    if (parts in (0, whole)) != (weight in (0.0, 1.0)):
        raise ValueError(f"canary_weight = {weight} is finer than this platform's step of 1/{whole}: use a larger one")
    return parts


def coarse_parts(weight: float, whole: int) -> int:
    """Return the canary's part of `whole` where the platform only splits what the gateways do not: 1 at the least."""
    return round(weight * whole) if weight in (0.0, 1.0) else min(max(1, round(weight * whole)), whole - 1)


def is_true(conditions: Iterable[Manifest], kind: str) -> bool:
    """Say whether the condition of this type is there and true."""
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def is_settled(manifest: Manifest, *, if_unsaid: bool) -> bool:
    """Say whether the operator has seen the newest generation of the object."""
    seen = (manifest.get("status") or {}).get("observedGeneration")
    return if_unsaid if seen is None else bool(seen >= manifest["metadata"].get("generation", 0))
