"""Names, annotations and percentages that manifests of both Seldon lines share."""

import hashlib
import re
from typing import Any

from hone.records import TrafficPlan

Manifest = dict[str, Any]

FENCE_ANNOTATION = "hone/fence"
EXPIRES_ANNOTATION = "hone/expires-at"
ROLLOUT_LABEL = "hone/rollout"
MAX_NAME = 63


def resource_name(prefix: str, version: str) -> str:
    """Return a DNS-1123 label for a model version; one that had to be changed carries a hash, so that none collide."""
    plain = re.sub(r"[^a-z0-9-]+", "-", f"{prefix}-{version}".lower()).strip("-")
    if plain == f"{prefix}-{version}" and len(plain) <= MAX_NAME:
        return plain
    digest = hashlib.sha256(f"{prefix}-{version}".encode()).hexdigest()[:8]
    return f"{plain[: MAX_NAME - 9].rstrip('-')}-{digest}"


def metadata(name: str, namespace: str, plan: TrafficPlan) -> Manifest:
    """Return metadata that says which plan the object carries. A custom resource does not expire by itself."""
    annotations = {FENCE_ANNOTATION: str(plan.fence), EXPIRES_ANNOTATION: plan.expires_at.isoformat()}
    labels = {"app.kubernetes.io/managed-by": "hone"}
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
