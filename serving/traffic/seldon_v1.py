"""Manifests of Seldon Core v1 (`machinelearning.seldon.io/v1`): one SeldonDeployment with a predictor for each arm.

Pure: plans in, manifests out. Written against the Apache-2.0 definition of release 1.17.1. Percentages are whole, so
the smallest step is 1 %. Seldon's own feedback route must not be used: it is drawn by lot anew, so that the canary's
rewards land on stable; hone credits feedback by the response that it speaks of.
"""

from collections.abc import Mapping, Sequence

from hone.records import TrafficPlan
from serving.traffic.backend import Capabilities
from serving.traffic.kubernetes import Manifest, metadata, parts_of, resource_name

API_VERSION = "machinelearning.seldon.io/v1"
CAPABILITIES = Capabilities(min_step=0.01, sticky=False, shadow=True, expires=False, streaming=False)
"""Of the resource alone: users stay in their arm only where hone's gateway calls the predictors' own services."""


def render_deployment(
    plan: TrafficPlan,
    *,
    name: str,
    namespace: str,
    image: str,
    model_uris: Mapping[str, str],
    replicas: Mapping[str, int] | None = None,
    shadow_percent: int = 100,
) -> Manifest:
    """Return the SeldonDeployment that carries the plan; `replicas` are by arm: stable, canary, shadow.

    Raises:
        KeyError: a version of the plan has no model URI.
        ValueError: the weight is no share or finer than 1 %, or the webhook would refuse the result.
    """
    counts = replicas or {}
    percent = parts_of(plan.canary_weight, 100) if plan.canary is not None else 0
    arms = [("stable", plan.stable, 100 - percent)]
    if plan.canary is not None and percent:
        arms.append(("canary", plan.canary, percent))
    elif plan.canary is not None and plan.shadow:
        arms.append(("shadow", plan.canary, shadow_percent))
    predictors = [
        render_predictor(arm, version, traffic, image, model_uris[version], counts.get(arm, 1))
        for arm, version, traffic in arms
    ]
    check_predictors(predictors)
    return {
        "apiVersion": API_VERSION,
        "kind": "SeldonDeployment",
        "metadata": metadata(name, namespace, plan),
        "spec": {"name": name, "protocol": "v2", "predictors": predictors},
    }


def render_predictor(arm: str, version: str, traffic: int, image: str, model_uri: str, replicas: int) -> Manifest:
    """Return one arm's predictor, which loads its weights from `model_uri`."""
    predictor: Manifest = {
        "name": arm,
        "labels": {"version": resource_name("chat", version), "track": arm},
        "annotations": {"hone/model-version": version},
        "replicas": replicas,
        "traffic": traffic,
        "graph": {"name": "chat", "type": "MODEL", "modelUri": model_uri},
        "componentSpecs": [{"spec": {"containers": [{"name": "chat", "image": image}]}}],
    }
    return predictor | {"shadow": True} if arm == "shadow" else predictor


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


def traffic_patch(predictors: Sequence[Manifest], traffic: Mapping[str, int]) -> list[Manifest]:
    """Return the JSON patch (RFC 6902) that sets all weights at once, and fails if the predictors changed meanwhile.

    Raises:
        ValueError: an arm is missing, or the webhook would refuse the result.
    """
    names = [predictor["name"] for predictor in predictors]
    if set(names) != set(traffic):
        raise ValueError(f"the deployment has predictors {names}, the weights are for {sorted(traffic)}")
    check_predictors([predictor | {"traffic": traffic[predictor["name"]]} for predictor in predictors])
    tests = [{"op": "test", "path": f"/spec/predictors/{n}/name", "value": name} for n, name in enumerate(names)]
    sets = [
        {"op": "add", "path": f"/spec/predictors/{n}/traffic", "value": traffic[name]} for n, name in enumerate(names)
    ]
    return [*tests, *sets]
