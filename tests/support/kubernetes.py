"""The stand-in cluster with Seldon's own definitions, and both Seldon backends on it."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from examples.cluster.api import Cluster
from examples.cluster.store import Check
from serving.traffic.kube_api import KubeApi
from serving.traffic.routers import Routers
from serving.traffic.seldon import SeldonTraffic
from serving.traffic.seldon_v1 import SeldonV1
from serving.traffic.seldon_v2 import SeldonV2
from serving.traffic.unkeyed import count_unkeyed

CRDS = Path(__file__).parents[3] / "shared" / "crds"
V1 = CRDS / "v1-apache-1.17.1" / "machinelearning.seldon.io_seldondeployments.yaml"
EXPERIMENT = CRDS / "v2-apache" / "mlops.seldon.io_experiments.yaml"
MODEL = CRDS / "v2-apache" / "mlops.seldon.io_models.yaml"
SCHEMAS = {"seldondeployments": (V1, "v1"), "experiments": (EXPERIMENT, "v1alpha1"), "models": (MODEL, "v1alpha1")}
NAME = "hone-chat"
KEY = "key-of-the-tests"


@cache
def validator(path: Path, version: str) -> jsonschema.Draft7Validator:
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schemas = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    return jsonschema.Draft7Validator(strict(schemas[version]))


def strict(schema: Any) -> Any:
    """Refuse unknown fields, as the API server's strict field validation does; metadata is free."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if not str(key).startswith("x-kubernetes")}
    known = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if known and "additionalProperties" not in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def schema_check(path: Path, version: str) -> Check:
    def check(manifest: dict[str, Any]) -> str | None:
        error = next(iter(validator(path, version).iter_errors(manifest)), None)
        return None if error is None else f"{'.'.join(map(str, error.path))}: {error.message}"

    return check


def schemas() -> dict[str, Check]:
    """Seldon's definitions where the data pack is there; without it only the webhooks' rules hold."""
    return {plural: schema_check(*where) for plural, where in SCHEMAS.items()} if CRDS.exists() else {}


def make_cluster(**options: Any) -> Cluster:
    return Cluster(schemas=schemas(), **options)


def seldon_backend(line: str, cluster: Cluster, routers: list[str], *, key: str = KEY, **options: Any) -> SeldonTraffic:
    """A backend that speaks to the cluster without a socket; `line` is `seldon_v1` or `seldon_v2`."""
    api = KubeApi("http://cluster", "hone", transport=cluster.transport())
    values: dict[str, Any] = {
        "count_unkeyed": count_unkeyed("http://cluster", cluster.transport()),
        "sleep": lambda seconds: None,
    } | options
    if line == "seldon_v1":
        return SeldonV1(Routers(routers, key), api, NAME, image="hone-seldon-v1:test", **values)
    return SeldonV2(Routers(routers, key), api, NAME, **values)
