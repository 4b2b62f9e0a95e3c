"""What Seldon's webhooks and scheduler refuse beyond their schemas, and fields that a cluster may fill in."""

from collections.abc import Iterable
from typing import Any

from examples.cluster.store import Resource

Manifest = dict[str, Any]
V1 = "seldondeployments"
EXPERIMENTS = "experiments"
MODELS = "models"


def v1_refusal(manifest: Manifest) -> str | None:
    """Return why the webhook of 1.17.1 refuses a SeldonDeployment."""
    predictors = manifest["spec"]["predictors"]
    names = [predictor["name"] for predictor in predictors]
    live = [predictor for predictor in predictors if not predictor.get("shadow")]
    shadows = [predictor for predictor in predictors if predictor.get("shadow")]
    if len(set(names)) != len(names):
        return f"Duplicate predictor name in {names}"
    if not live:
        return "Shadow can not exist as only predictor"
    if len(live) > 1 and (total := sum(predictor.get("traffic", 0) for predictor in live)) != 100:
        return f"Traffic must sum to 100 for multiple predictors, not {total}"
    if len(shadows) > 1:
        return "Multiple shadows are not allowed"
    if shadows and not 0 <= shadows[0].get("traffic", 0) <= 100:
        return "Traffic value for shadow must be between 0 and 100"
    return None


def v1_defaults(manifest: Manifest) -> None:
    """Fill in fields as a cluster's policies may, so that more is stored than was sent; Seldon 1.17.1 stores none."""
    for predictor in manifest["spec"]["predictors"]:
        predictor.setdefault("replicas", 1)
        predictor["graph"].setdefault("endpoint", {"type": "REST", "service_host": "localhost", "service_port": 9000})
        predictor["graph"].setdefault("children", [])


def v2_refusal(spec: Manifest, others: Iterable[Manifest]) -> str | None:
    """Return why the scheduler of v2 does not run an Experiment; `others` are the specs of the rest."""
    names = [arm["name"] for arm in spec["candidates"]] + ([spec["mirror"]["name"]] if "mirror" in spec else [])
    if not names:
        return "experiment has no candidates or mirror"
    if len(set(names)) != len(names):
        return "experiment has duplicate candidates"
    default = spec.get("default")
    if default is not None and default not in [arm["name"] for arm in spec["candidates"]]:
        return f"default model {default} not found in candidates"
    if default is not None and any(other.get("default") == default for other in others):
        return f"default model {default} is used in another experiment"
    return None


RESOURCES = (
    Resource(V1, "machinelearning.seldon.io", "v1", "SeldonDeployment", (v1_refusal,), v1_defaults),
    Resource(EXPERIMENTS, "mlops.seldon.io", "v1alpha1", "Experiment"),
    Resource(MODELS, "mlops.seldon.io", "v1alpha1", "Model"),
)
