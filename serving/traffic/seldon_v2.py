"""Manifests of Seldon Core v2 (`mlops.seldon.io/v1alpha1`): one Model for each version, one Experiment for the split.

Pure: plans in, manifests out. Written against the Apache-2.0 definitions of release 2.6.0. Weights are relative, so
the smallest step is 1/1000.
"""

from collections.abc import Sequence

from hone.records import TrafficPlan
from serving.traffic.backend import Capabilities
from serving.traffic.kubernetes import Manifest, metadata, parts_of, resource_name

API_VERSION = "mlops.seldon.io/v1alpha1"
WHOLE = 1000
CAPABILITIES = Capabilities(min_step=1 / WHOLE, sticky=False, shadow=True, expires=False, streaming=False)
"""Of the resource alone: users stay in their arm only where hone's gateway names the model itself."""


def model_name(version: str) -> str:
    """Return the name of a version's Model: one for each version, else its metrics cannot be told apart."""
    return resource_name("chat", version)


def render_model(
    version: str,
    storage_uri: str,
    *,
    namespace: str,
    requirements: Sequence[str] = ("hone",),
    memory: str | None = None,
    replicas: int = 1,
) -> Manifest:
    """Return the Model that serves `version`; `requirements` pick the servers that can load it."""
    spec: Manifest = {"storageUri": storage_uri, "requirements": list(requirements), "replicas": replicas}
    if memory is not None:
        spec["memory"] = memory
    meta = {
        "name": model_name(version),
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "hone"},
        "annotations": {"hone/model-version": version},
    }
    return {"apiVersion": API_VERSION, "kind": "Model", "metadata": meta, "spec": spec}


def render_experiment(plan: TrafficPlan, *, name: str, namespace: str, shadow_percent: int = 100) -> Manifest:
    """Return the Experiment that carries the plan.

    Raises:
        ValueError: the weight is no share or finer than 1/1000, or the scheduler would refuse the result.
    """
    canary = parts_of(plan.canary_weight, WHOLE) if plan.canary is not None else 0
    stable = model_name(plan.stable)
    candidates = [{"name": stable, "weight": WHOLE - canary}]
    spec: Manifest = {"default": stable, "resourceType": "model", "candidates": candidates}
    if plan.canary is not None and canary:
        candidates.append({"name": model_name(plan.canary), "weight": canary})
    elif plan.canary is not None and plan.shadow:
        spec["mirror"] = {"name": model_name(plan.canary), "percent": shadow_percent}
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "Experiment",
        "metadata": metadata(name, namespace, plan),
        "spec": spec,
    }
    check_experiment(manifest)
    return manifest


def check_experiment(manifest: Manifest) -> None:
    """Raise ValueError where the scheduler would refuse the Experiment though its schema is valid.

    The rules of `scheduler/pkg/store/experiment/validate.go`; that a default belongs to one Experiment only cannot be
    seen from one manifest.
    """
    spec = manifest["spec"]
    names = [candidate["name"] for candidate in spec.get("candidates", [])]
    arms = [*names, spec["mirror"]["name"]] if "mirror" in spec else names
    if not arms:
        raise ValueError("the experiment has neither candidate nor mirror: give it one")
    if len(set(arms)) != len(arms):
        raise ValueError(f"the experiment names a model twice: {arms}")
    if "default" in spec and spec["default"] not in names:
        raise ValueError(f"default {spec['default']!r} is not a candidate: the candidates are {names}")
    if "mirror" in spec and not 0 <= spec["mirror"]["percent"] <= 100:
        raise ValueError(f"mirror.percent = {spec['mirror']['percent']}: give 0 to 100")
