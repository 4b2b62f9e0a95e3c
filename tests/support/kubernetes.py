"""The stand-in cluster with Seldon's own definitions, and both Seldon backends on it."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from examples.cluster.api import Cluster
from examples.cluster.store import Check, UnknownField
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
GRAPH_LEVELS = 10
NAME = "hone-chat"
KEY = "key-of-the-tests"
REAL = pytest.param("real", marks=[pytest.mark.kubernetes, pytest.mark.shared])
CLUSTERS = ("stand-in", REAL)
"""What keeps the objects: our own store, or a real API server with etcd."""


@cache
def definition_of(path: Path) -> dict[str, Any]:
    """The definition as a cluster has it: the file's graph of v1 lacks what Seldon's own kustomize step puts in."""
    definition: dict[str, Any] = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if path == V1:
        spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        predictor = spec["properties"]["predictors"]["items"]["properties"]
        predictor["graph"] = nested(predictor["graph"], GRAPH_LEVELS)
    return definition


def nested(graph: dict[str, Any], levels: int) -> dict[str, Any]:
    """The schema of a graph whose children are graphs: schemas cannot refer to themselves, so it is written out."""
    properties = {name: schema for name, schema in graph["properties"].items() if name != "children"}
    if levels:
        properties["children"] = {"type": "array", "items": nested(graph, levels - 1)}
    return graph | {"properties": properties}


@cache
def validator(path: Path, version: str) -> jsonschema.Draft7Validator:
    definition = definition_of(path)
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
        errors = list(validator(path, version).iter_errors(manifest))
        for error in errors:
            if error.validator == "additionalProperties":
                return UnknownField(f"strict decoding error: unknown field in {place(error)}: {error.message}")
        return f"{place(errors[0])}: {errors[0].message}" if errors else None

    def place(error: jsonschema.ValidationError) -> str:
        return ".".join(map(str, error.path))

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
