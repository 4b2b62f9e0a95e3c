"""Seldon Core v1 (`machinelearning.seldon.io/v1`): one SeldonDeployment with a predictor for each version.

Written against the Apache-2.0 definition of release 1.17.1. Predictors are named by version, so that a promotion only
moves shares and restarts nobody. Percentages are whole, so the smallest step is 1 %. Seldon's own feedback route must
not be used: it is drawn by lot anew, so that the canary's rewards land on stable; hone credits feedback by the answer
that it speaks of.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hone.records import TrafficPlan
from serving.traffic.backend import Capabilities, ResourceView
from serving.traffic.effect import Weights
from serving.traffic.fenced import fence_of, write_fenced
from serving.traffic.kube_api import Kind
from serving.traffic.kubernetes import (
    OURS,
    VERSION_ANNOTATION,
    Manifest,
    coarse_parts,
    is_settled,
    metadata,
    resource_name,
)
from serving.traffic.seldon import SeldonTraffic, without_canary

API_VERSION = "machinelearning.seldon.io/v1"
DEPLOYMENTS = Kind("machinelearning.seldon.io", "v1", "seldondeployments")
CAPABILITIES = Capabilities(min_step=0.01, sticky=True, shadow=True, expires=True, streaming=False)
"""Of traffic that our gateways key. The SeldonDeployment alone is not sticky and does not expire."""
MAX_PREDICTOR_NAME = 38
"""So that the Deployment of a predictor, `NAME-PREDICTOR-0-chat`, keeps its name: above 63 Seldon makes it a hash."""
MODELS_MOUNT = "/var/lib/hone"


def predictor_name(version: str) -> str:
    """Return the name of a version's predictor."""
    return resource_name("chat", version, MAX_PREDICTOR_NAME)


def service_name(name: str, version: str) -> str:
    """Return the name of the Service that reaches one version and no other."""
    return resource_name(name, version)


def render_predictor(
    name: str, version: str, directory: str, image: str, *, traffic: int, replicas: int = 1
) -> Manifest:
    """Return the predictor of one version of the deployment `name`; its container loads `directory` from the volume."""
    parameters = [
        {"name": key, "type": "STRING", "value": value}
        for key, value in (("version", version), ("directory", directory))
    ]
    container = {
        "name": "chat",
        "image": image,
        "volumeMounts": [{"name": "hone", "mountPath": MODELS_MOUNT, "readOnly": True}],
    }
    volume = {"name": "hone", "persistentVolumeClaim": {"claimName": "hone", "readOnly": True}}
    return {
        "name": predictor_name(version),
        "annotations": {VERSION_ANNOTATION: version, "seldon.io/svc-name": service_name(name, version)},
        "replicas": replicas,
        "traffic": traffic,
        "graph": {"name": "chat", "type": "MODEL", "parameters": parameters},
        "componentSpecs": [{"spec": {"containers": [container], "volumes": [volume]}}],
    }


def render_deployment(
    plan: TrafficPlan, predictors: Sequence[Manifest], *, name: str, namespace: str, attempt: int = 0
) -> Manifest:
    """Return the SeldonDeployment of these predictors, with the shares of the plan; none without a stable predictor.

    Raises:
        ValueError: the weight is no share, or the webhook would refuse the result.
    """
    arms = split(predictors, plan)
    check_predictors(arms)
    return {
        "apiVersion": API_VERSION,
        "kind": "SeldonDeployment",
        "metadata": metadata(name, namespace, plan, attempt),
        "spec": {"name": name, "protocol": "seldon", "predictors": arms},
    }


def split(predictors: Sequence[Manifest], plan: TrafficPlan, shadow_percent: int = 100) -> list[Manifest]:
    """Return the predictors with the shares of the plan; a version that is not in it has none."""
    shares = percentages(plan)
    arms = []
    for predictor in predictors:
        version = version_in(predictor)
        arm = {key: copy.deepcopy(value) for key, value in predictor.items() if key != "shadow"}
        arm["traffic"] = shares.get(version, 0)
        if plan.shadow and version == plan.canary and not arm["traffic"]:
            arm |= {"shadow": True, "traffic": shadow_percent}
        arms.append(arm)
    return arms


def percentages(plan: TrafficPlan) -> dict[str, int]:
    """Return the plan's shares by version, in percent."""
    canary = coarse_parts(plan.canary_weight, 100) if plan.canary is not None else 0
    shares = {plan.stable: 100 - canary} | ({plan.canary: canary} if plan.canary is not None else {})
    return {version: share for version, share in shares.items() if share}


def check_predictors(predictors: Sequence[Manifest]) -> None:
    """Raise ValueError where the webhook would refuse the predictors though their schema is valid.

    The rules of `seldondeployment_webhook.go` (checkTraffic, validateShadow) of 1.17.1.
    """
    shadows = [predictor for predictor in predictors if predictor.get("shadow")]
    live = [predictor for predictor in predictors if not predictor.get("shadow")]
    total = sum(predictor.get("traffic", 0) for predictor in live)
    if len(live) > 1 and total != 100:
        raise ValueError(f"traffic of the predictors adds up to {total}, not 100: change all of them in one patch")
    if len(shadows) > 1:
        raise ValueError(f"{len(shadows)} predictors are shadows: at most 1 may be")
    if shadows and not live:
        raise ValueError("the shadow is the only predictor: it needs one whose requests it copies")
    if any(not 0 <= shadow.get("traffic", 0) <= 100 for shadow in shadows):
        raise ValueError(f"traffic of the shadow is {shadows[0]['traffic']}: give 0 to 100")


def version_in(predictor: Manifest) -> str:
    """Return the model version that a predictor serves."""
    return str((predictor.get("annotations") or {}).get(VERSION_ANNOTATION, predictor["name"]))


def is_predictor_ready(deployment: Manifest, predictor: Manifest) -> bool:
    """Say whether all replicas of a predictor answer, as the status of its Deployments says."""
    statuses: Mapping[str, Manifest] = (deployment.get("status") or {}).get("deploymentStatus") or {}
    prefix = f"{deployment['metadata']['name']}-{predictor['name']}-"
    ours = [status for key, status in statuses.items() if key.startswith(prefix)]
    return bool(ours) and all(0 < status.get("availableReplicas", 0) >= status.get("replicas", 1) for status in ours)


def is_deployment_ready(deployment: Manifest) -> bool:
    """Say whether the operator has this generation in force, with every predictor answering."""
    predictors = deployment["spec"]["predictors"]
    available = (deployment.get("status") or {}).get("state") == "Available"
    all_ready = all(is_predictor_ready(deployment, predictor) for predictor in predictors)
    return available and is_settled(deployment, if_unsaid=True) and all_ready


class SeldonV1(SeldonTraffic):
    """`image` holds seldon-core's wrapper; the models' volume is mounted at `MODELS_MOUNT`."""

    def __init__(self, *fixed: Any, image: str, **options: Any) -> None:
        super().__init__(*fixed, **options)
        self.image = image

    def capabilities(self) -> Capabilities:
        """Return what gateways over Seldon v1 can do."""
        return CAPABILITIES

    def deploy(self, model_version: str, directory: str) -> None:
        """Add the version's predictor, without traffic; the first one makes the deployment, and has all of it."""

        def render(current: Manifest | None) -> Manifest | None:
            predictor = render_predictor(self.name, model_version, directory, self.image, traffic=0 if current else 100)
            if current is None:
                return self._deployment({"labels": dict([OURS])}, [predictor], {})
            present = current["spec"]["predictors"]
            if any(version_in(one) == model_version for one in present):
                return None
            return self._deployment(current["metadata"], [*present, predictor], current["spec"])

        write_fenced(self.api, DEPLOYMENTS, self.name, render, fence=None, sleep=self.sleep)

    def _deployment(self, meta: Manifest, predictors: Sequence[Manifest], spec: Manifest) -> Manifest:
        """Return the deployment with other predictors; plan and all else stay as they are."""
        check_predictors(predictors)
        return {
            "apiVersion": API_VERSION,
            "kind": "SeldonDeployment",
            "metadata": meta | {"name": self.name, "namespace": self.api.namespace},
            "spec": {"name": self.name, "protocol": "seldon"} | spec | {"predictors": list(predictors)},
        }

    def is_ready(self, model_version: str) -> bool:
        """Say whether the version's predictor answers."""
        return model_version in self.ready_versions()

    def ready_versions(self) -> frozenset[str]:
        """Return the versions whose predictors answer."""
        found = self.api.get(DEPLOYMENTS, self.name)
        predictors = [] if found is None else found["spec"]["predictors"]
        return frozenset(version_in(one) for one in predictors if found and is_predictor_ready(found, one))

    def write(self, plan: TrafficPlan, attempt: int) -> None:
        """Move the shares of the predictors, all in one patch; nothing happens while stable has no predictor yet."""

        def render(current: Manifest | None) -> Manifest | None:
            present = [] if current is None else current["spec"]["predictors"]
            if current is None or not any(version_in(one) == plan.stable for one in present):
                return None
            has_canary = any(version_in(one) == plan.canary for one in present)
            spec = current["spec"] | {"predictors": split(present, plan if has_canary else without_canary(plan))}
            check_predictors(spec["predictors"])
            return current | {"metadata": metadata(self.name, self.api.namespace, plan, attempt), "spec": spec}

        write_fenced(self.api, DEPLOYMENTS, self.name, render, fence=plan.fence, sleep=self.sleep)

    def recreate(self, plan: TrafficPlan) -> bool:
        """Never: the deployment is what serves, so that deleting it would interrupt everybody."""
        return False

    def look(self) -> ResourceView | None:
        """Read the SeldonDeployment."""
        found = self.api.get(DEPLOYMENTS, self.name)
        if found is None:
            return None
        live = [one for one in found["spec"]["predictors"] if not one.get("shadow") and one.get("traffic")]
        return ResourceView(
            address=f"seldondeployment {self.api.namespace}/{self.name}",
            reachable=True,
            weights={version_in(one): one["traffic"] / 100 for one in live},
            ready=is_deployment_ready(found),
            generation=found["metadata"]["generation"],
            fence=fence_of(found),
        )

    def weights_of(self, plan: TrafficPlan) -> Weights:
        """Return the plan's shares in hundredths."""
        return {version: share / 100 for version, share in percentages(plan).items()}

    def withdraw(self, model_version: str) -> None:
        """Take the version's predictor out; the last one stays."""

        def render(current: Manifest | None) -> Manifest | None:
            present = [] if current is None else current["spec"]["predictors"]
            left = [one for one in present if version_in(one) != model_version]
            if current is None or not left or len(left) == len(present):
                return None
            return self._deployment(current["metadata"], left, current["spec"])

        write_fenced(self.api, DEPLOYMENTS, self.name, render, fence=None, sleep=self.sleep)
