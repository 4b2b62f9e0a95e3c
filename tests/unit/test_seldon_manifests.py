"""Manifests for any weight, against Seldon's own schemas with unknown fields refused, and the rules beside them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.records import TrafficPlan
from serving.traffic.kubernetes import coarse_parts, parts_of, resource_name
from serving.traffic.seldon_v1 import check_predictors, render_deployment, render_predictor, split
from serving.traffic.seldon_v2 import check_experiment, render_experiment, render_model
from tests.support.kubernetes import EXPERIMENT, MODEL, V1, validator

IMAGE = "hone-seldon-v1:1"


def plan(weight: float = 0.0, *, canary: str | None = "v42", shadow: bool = False) -> TrafficPlan:
    return TrafficPlan(
        fence=1 << 32 | 7,
        stable="v41",
        canary=canary,
        canary_weight=weight,
        shadow=shadow,
        rollout_id=UUID(int=3) if canary else None,
        stage=0 if canary else None,
        expires_at=datetime(2026, 3, 2, 9, tzinfo=UTC),
    )


def experiment(**fields: Any) -> dict[str, Any]:
    return render_experiment(plan(**fields), name="chat", namespace="hone")


def predictor(version: str, traffic: int = 0) -> dict[str, Any]:
    return render_predictor("chat", version, f"/models/{version}", IMAGE, traffic=traffic)


def deployment(**fields: Any) -> dict[str, Any]:
    arms = [predictor("v41"), predictor("v42")]
    return render_deployment(plan(**fields), arms, name="chat", namespace="hone")


@pytest.mark.shared
@settings(max_examples=60, deadline=None)
@given(st.one_of(st.just(0.0), st.just(1.0), st.floats(0.001, 0.999)), st.booleans())
def test_an_experiment_for_any_weight_is_valid(weight: float, shadow: bool) -> None:
    manifest = experiment(weight=weight, shadow=shadow)
    validator(EXPERIMENT, "v1alpha1").validate(manifest)
    weights = [candidate["weight"] for candidate in manifest["spec"]["candidates"]]
    assert sum(weights) == 1000
    assert weights[1:] == ([round(weight * 1000)] if weight else [])


@pytest.mark.shared
@settings(max_examples=30, deadline=None)
@given(st.one_of(st.just(0.0), st.floats(0.01, 0.99)), st.booleans())
def test_a_deployment_for_any_weight_is_valid(weight: float, shadow: bool) -> None:
    manifest = deployment(weight=weight, shadow=shadow)
    validator(V1, "v1").validate(manifest)
    live = [p["traffic"] for p in manifest["spec"]["predictors"] if not p.get("shadow")]
    assert sum(live) == 100
    assert live[1:] == ([] if shadow and not weight else [round(weight * 100)])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "version", "manifest", "field"),
    [
        (EXPERIMENT, "v1alpha1", experiment(weight=0.05), "candidates"),
        (V1, "v1", deployment(weight=0.05), "predictors"),
    ],
)
def test_the_schemas_catch_a_misspelt_field(path: Path, version: str, manifest: dict[str, Any], field: str) -> None:
    manifest["spec"][field][0]["trafic"] = 5
    with pytest.raises(jsonschema.ValidationError, match="trafic"):
        validator(path, version).validate(manifest)


@pytest.mark.shared
def test_a_model_is_valid() -> None:
    manifest = render_model("v42", "s3://models/v42", namespace="hone", memory="2Gi")
    validator(MODEL, "v1alpha1").validate(manifest)
    assert manifest["metadata"]["name"] == "chat-v42"


def test_an_experiment_splits_defaults_and_mirrors() -> None:
    split = experiment(weight=0.05)["spec"]
    assert split["candidates"] == [{"name": "chat-v41", "weight": 950}, {"name": "chat-v42", "weight": 50}]
    assert "default" not in split, "else requests that name the stable model would be split too"
    assert experiment(weight=0.0, shadow=True)["spec"]["mirror"] == {"name": "chat-v42", "percent": 100}
    assert "mirror" not in experiment(canary=None)["spec"]


def test_a_manifest_names_its_plan() -> None:
    meta = deployment(weight=0.25)["metadata"]
    assert meta["annotations"]["hone/fence"] == str(1 << 32 | 7)
    assert meta["labels"]["hone/rollout"] == str(UUID(int=3))


@pytest.mark.parametrize(
    ("weight", "whole"),
    [pytest.param(0.004, 100, id="below 1 %"), pytest.param(0.996, 100, id="above 99 %"), (-0.1, 100), (1.1, 1000)],
)
def test_a_weight_that_the_platform_cannot_express_is_refused(weight: float, whole: int) -> None:
    with pytest.raises(ValueError, match=r"canary_weight = "):
        parts_of(weight, whole)


def predictors(*traffic: int, shadow: int | None = None) -> list[dict[str, Any]]:
    found = [predictor(f"v{n}", share) for n, share in enumerate(traffic)]
    return found if shadow is None else [*found, predictor("v9", shadow) | {"shadow": True}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(predictors(95, 50), "adds up to 145", id="weights that sum to 145"),
        pytest.param(predictors(100, shadow=20) + predictors(shadow=20), "2 predictors are shadows", id="two shadows"),
        pytest.param(predictors(shadow=20), "only predictor", id="a lonely shadow"),
        pytest.param(predictors(100, shadow=120), "is 120", id="a shadow above 100 %"),
    ],
)
def test_what_the_webhook_of_v1_refuses_is_refused_here(given: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_predictors(given)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param({"candidates": []}, "neither candidate nor mirror", id="nothing"),
        pytest.param({"candidates": [{"name": "a"}], "default": "b"}, "is not a candidate", id="a foreign default"),
        pytest.param({"candidates": [{"name": "a"}, {"name": "a"}]}, "twice", id="a model twice"),
        pytest.param(
            {"candidates": [{"name": "a"}], "mirror": {"name": "a", "percent": 5}}, "twice", id="a mirror of itself"
        ),
        pytest.param(
            {"candidates": [{"name": "a"}], "mirror": {"name": "b", "percent": 101}}, "percent = 101", id="too much"
        ),
    ],
)
def test_what_the_scheduler_of_v2_refuses_is_refused_here(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_experiment({"spec": spec})


def test_predictors_are_named_by_version_so_that_a_promotion_restarts_nobody() -> None:
    before = deployment(weight=0.25)["spec"]["predictors"]
    promoted = TrafficPlan(fence=9, stable="v42", expires_at=datetime(2026, 3, 2, 9, tzinfo=UTC))
    after = split(before, promoted)
    assert [arm["traffic"] for arm in after] == [0, 100]
    assert [arm | {"traffic": 0} for arm in after] == [arm | {"traffic": 0} for arm in before]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=90))
def test_names_that_seldon_derives_stay_below_its_limit(version: str) -> None:
    arm = predictor(version)
    assert len(f"{'n' * 18}-{arm['name']}-0-chat") <= 63
    assert len(arm["annotations"]["seldon.io/svc-name"]) <= 63


def test_a_resource_beside_gateways_takes_its_smallest_step_where_the_weight_is_finer() -> None:
    assert [coarse_parts(weight, 100) for weight in (0.0, 0.001, 0.25, 0.999, 1.0)] == [0, 1, 25, 99, 100]


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=90))
def test_every_version_gives_a_legal_name(version: str) -> None:
    name = resource_name("chat", version)
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name[0] != "-" != name[-1]


def test_versions_that_look_alike_get_different_names() -> None:
    assert resource_name("chat", "v1") == "chat-v1"
    assert len({resource_name("chat", version) for version in ("v.1", "v_1", "V-1", "v-1")}) == 4
