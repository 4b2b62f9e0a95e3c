"""`python -m deploy.seldon.render` prints what the renderers make."""

import json
from typing import Any

from click.testing import CliRunner

from deploy.seldon.render import cli

URIS = ("--uri", "m-1=s3://models/1", "--uri", "m-2=s3://models/2")


def items(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["kind"] == "List"
    return list(found["items"])


def test_v2_prints_a_model_for_each_version_and_the_experiment_with_the_weights() -> None:
    first, second, experiment = items("v2", "--stable", "m-1", "--canary", "m-2", "--weight", "0.05", *URIS)
    assert [first["spec"]["storageUri"], second["spec"]["storageUri"]] == ["s3://models/1", "s3://models/2"]
    weights = {candidate["name"]: candidate["weight"] for candidate in experiment["spec"]["candidates"]}
    assert weights == {first["metadata"]["name"]: 950, second["metadata"]["name"]: 50}


def test_v1_prints_one_deployment_and_a_canary_without_weight_only_gets_copies() -> None:
    (deployment,) = items("v1", "--stable", "m-1", "--canary", "m-2", "--image", "hone-seldon-v1:0.1.0", *URIS)
    arms = {arm["name"]: arm.get("shadow", False) for arm in deployment["spec"]["predictors"]}
    assert arms == {"chat-m-1": False, "chat-m-2": True}


def test_a_weight_that_the_platform_alone_cannot_split_by_is_refused() -> None:
    result = CliRunner().invoke(cli, ["v1", "--stable", "m-1", "--canary", "m-2", "--weight", "0.001", *URIS])
    assert result.exit_code == 2
    assert "finer than this platform's step of 1/100" in result.output


def test_a_version_alone_has_no_split() -> None:
    model, experiment = items("v2", "--stable", "m-1", *URIS)
    assert [candidate["name"] for candidate in experiment["spec"]["candidates"]] == [model["metadata"]["name"]]


def test_the_settings_beside_the_weights_name_the_version() -> None:
    result = CliRunner().invoke(cli, ["settings", "m-1"])
    found = json.loads(result.output)
    assert found["parameters"] == {"extra": {"version": "m-1"}}
    assert found["implementation"] == "serving.seldon.v2.ChatModel"
