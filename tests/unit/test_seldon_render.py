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
    (deployment,) = items("v1", "--stable", "m-1", "--canary", "m-2", "--image", "hone-runtime:0.1.0", *URIS)
    arms = {arm["name"]: arm.get("shadow", False) for arm in deployment["spec"]["predictors"]}
    assert arms == {"stable": False, "shadow": True}


def test_a_version_alone_has_no_split() -> None:
    model, experiment = items("v2", "--stable", "m-1", *URIS)
    assert [candidate["name"] for candidate in experiment["spec"]["candidates"]] == [model["metadata"]["name"]]
