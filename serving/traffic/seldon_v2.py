"""Seldon Core v2 (`mlops.seldon.io/v1alpha1`): one Model for each version, one Experiment for the split.

Written against the Apache-2.0 definitions of release 2.6.0. Weights are relative, so the smallest step is 1/1000. The
Experiment has no `default`: with one, requests that name the default model would be split too, and a gateway could no
longer name the stable arm. Callers past the gateways name `NAME.experiment`.
"""

from collections.abc import Sequence
from typing import Any

from hone.records import TrafficPlan
from serving.traffic.backend import Capabilities, ResourceView
from serving.traffic.effect import Weights
from serving.traffic.fenced import fence_of, refuse_older, write_fenced
from serving.traffic.kube_api import Kind
from serving.traffic.kubernetes import (
    OURS,
    VERSION_ANNOTATION,
    Manifest,
    coarse_parts,
    is_settled,
    is_true,
    metadata,
    resource_name,
)
from serving.traffic.seldon import SeldonTraffic

API_VERSION = "mlops.seldon.io/v1alpha1"
MODELS = Kind("mlops.seldon.io", "v1alpha1", "models")
EXPERIMENTS = Kind("mlops.seldon.io", "v1alpha1", "experiments")
WHOLE = 1000
CAPABILITIES = Capabilities(min_step=1 / WHOLE, sticky=True, shadow=True, expires=True, streaming=False)
"""Of traffic that our gateways key. The Experiment alone is not sticky and does not expire."""
SPLIT = ("default", "resourceType", "candidates", "mirror")
"""Fields of the Experiment that are ours."""


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
        "labels": dict([OURS]),
        "annotations": {VERSION_ANNOTATION: version},
    }
    return {"apiVersion": API_VERSION, "kind": "Model", "metadata": meta, "spec": spec}


def render_experiment(
    plan: TrafficPlan, *, name: str, namespace: str, shadow_percent: int = 100, attempt: int = 0
) -> Manifest:
    """Return the Experiment that carries the plan.

    Raises:
        ValueError: the weight is no share, or the scheduler would refuse the result.
    """
    canary = coarse_parts(plan.canary_weight, WHOLE) if plan.canary is not None else 0
    candidates = [{"name": model_name(plan.stable), "weight": WHOLE - canary}]
    spec: Manifest = {"resourceType": "model", "candidates": candidates}
    if plan.canary is not None and canary:
        candidates.append({"name": model_name(plan.canary), "weight": canary})
    elif plan.canary is not None and plan.shadow:
        spec["mirror"] = {"name": model_name(plan.canary), "percent": shadow_percent}
    meta = metadata(name, namespace, plan, attempt)
    manifest = {"apiVersion": API_VERSION, "kind": "Experiment", "metadata": meta, "spec": spec}
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


def is_experiment_ready(manifest: Manifest) -> bool:
    """Say whether the operator has this generation in force, with every arm of it answering."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    wanted = ["ExperimentReady", "CandidatesReady", *(["MirrorReady"] if "mirror" in manifest["spec"] else [])]
    return is_settled(manifest, if_unsaid=False) and all(is_true(conditions, kind) for kind in wanted)


def is_model_ready(manifest: Manifest) -> bool:
    """Say whether this generation of the Model is loaded and answers."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return is_settled(manifest, if_unsaid=False) and is_true(conditions, "ModelReady")


def version_in(manifest: Manifest) -> str:
    """Return the model version that an object serves."""
    annotations = manifest["metadata"].get("annotations") or {}
    return str(annotations.get(VERSION_ANNOTATION, manifest["metadata"]["name"]))


class SeldonV2(SeldonTraffic):
    """`storage_uri` is where Seldon finds a version's folder; `{directory}` and `{version}` in it are replaced."""

    def __init__(
        self, *fixed: Any, storage_uri: str = "{directory}", memory: str | None = None, **options: Any
    ) -> None:
        super().__init__(*fixed, **options)
        self.storage_uri, self.memory = storage_uri, memory

    def capabilities(self) -> Capabilities:
        """Return what gateways over Seldon v2 can do."""
        return CAPABILITIES

    def deploy(self, model_version: str, directory: str) -> None:
        """Create the version's Model, or correct it."""
        uri = self.storage_uri.format(directory=directory, version=model_version)
        desired = render_model(model_version, uri, namespace=self.api.namespace, memory=self.memory)

        def render(current: Manifest | None) -> Manifest:
            if current is None:
                return desired
            return desired | {"spec": current["spec"] | desired["spec"]}

        write_fenced(self.api, MODELS, model_name(model_version), render, fence=None, sleep=self.sleep)

    def is_ready(self, model_version: str) -> bool:
        """Say whether the Model is loaded and answers."""
        model = self.api.get(MODELS, model_name(model_version))
        return model is not None and is_model_ready(model)

    def ready_versions(self) -> frozenset[str]:
        """Return the versions whose Models answer."""
        return frozenset(version_in(model) for model in self._models() if is_model_ready(model))

    def _models(self) -> list[Manifest]:
        return self.api.list(MODELS, "=".join(OURS))

    def write(self, plan: TrafficPlan, attempt: int) -> None:
        """Bring the Experiment to the plan; other fields than the split stay as they are."""
        desired = render_experiment(plan, name=self.name, namespace=self.api.namespace, attempt=attempt)

        def render(current: Manifest | None) -> Manifest:
            if current is None:
                return desired
            foreign = {key: value for key, value in current["spec"].items() if key not in SPLIT}
            return desired | {"spec": foreign | desired["spec"]}

        write_fenced(self.api, EXPERIMENTS, self.name, render, fence=plan.fence, sleep=self.sleep)

    def recreate(self, plan: TrafficPlan) -> bool:
        """Delete the Experiment and create it anew. Requests that name a model are not touched by it."""
        current = self.api.get(EXPERIMENTS, self.name)
        refuse_older(current, plan.fence, self.name)
        if current is not None:
            self.api.delete(EXPERIMENTS, self.name, current["metadata"]["resourceVersion"])
        self.write(plan, self._effect.cures)
        return True

    def look(self) -> ResourceView | None:
        """Read the Experiment."""
        found = self.api.get(EXPERIMENTS, self.name)
        if found is None:
            return None
        candidates = found["spec"]["candidates"]
        whole = sum(arm["weight"] for arm in candidates) or 1
        versions = {model["metadata"]["name"]: version_in(model) for model in self._models()}
        weights = {versions.get(arm["name"], arm["name"]): arm["weight"] / whole for arm in candidates if arm["weight"]}
        return ResourceView(
            address=f"experiment {self.api.namespace}/{self.name}",
            reachable=True,
            weights=weights,
            ready=is_experiment_ready(found),
            generation=found["metadata"]["generation"],
            fence=fence_of(found),
        )

    def weights_of(self, plan: TrafficPlan) -> Weights:
        """Return the plan's shares in thousandths."""
        canary = coarse_parts(plan.canary_weight, WHOLE) if plan.canary is not None else 0
        shares = {plan.stable: WHOLE - canary} | ({plan.canary: canary} if plan.canary is not None else {})
        return {version: parts / WHOLE for version, parts in shares.items() if parts}

    def withdraw(self, model_version: str) -> None:
        """Delete the version's Model."""
        self.api.delete(MODELS, model_name(model_version))
