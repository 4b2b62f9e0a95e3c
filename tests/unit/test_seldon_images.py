"""The environments and images of Seldon's servers; nothing is built here."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from serving.traffic.seldon_v1 import render_predictor
from serving.traffic.seldon_v2 import render_model

FOLDER = Path(__file__).parents[2] / "deploy" / "seldon"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def pins(line: str) -> dict[str, str]:
    rows = (FOLDER / f"requirements-{line}.txt").read_text().splitlines()
    return dict(row.split(" ;")[0].split("==") for row in rows if row and not row.startswith("#"))


@pytest.mark.parametrize("line", ["v1", "v2"])
def test_every_package_is_pinned_and_no_index_is_named(line: str) -> None:
    text = (FOLDER / f"requirements-{line}.txt").read_text()
    rows = [row for row in text.splitlines() if row and not row.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[\w.!]+( ; .+)?$", row) for row in rows)
    assert "://" not in text
    asked = (FOLDER / f"requirements-{line}.in").read_text()
    assert all(name in pins(line) for name in re.findall(r"^([a-z-]+)[=<]", asked, re.MULTILINE))


def test_seldon_core_is_the_last_apache_version_and_can_start() -> None:
    v1 = pins("v1")
    assert v1["seldon-core"] == "1.17.1"
    assert int(v1["setuptools"].split(".")[0]) < 81, "gunicorn 20.1 imports pkg_resources"


def test_images_run_the_commands_of_the_classes_that_are_here() -> None:
    assert find_spec("serving.seldon.v1") and "serving.seldon.v1.ChatModel" in DOCKERFILE
    assert find_spec("serving.seldon.v2")
    targets = re.findall(r"^FROM base AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert targets == ["v1", "v2"]
    assert all(f"COPY requirements-{target}.txt" in DOCKERFILE for target in targets)
    assert DOCKERFILE.count("USER 10001") == 2


def test_models_ask_for_what_the_server_offers_and_predictors_for_the_v1_image() -> None:
    server = yaml.safe_load((FOLDER / "server.yaml").read_text())
    model = render_model("m-1", "/models/m-1", namespace="hone")
    assert set(model["spec"]["requirements"]) <= set(server["spec"]["capabilities"])
    predictor = render_predictor("hone-chat", "m-1", "/models/m-1", "hone-seldon-v1", traffic=0)
    names = {one["name"] for one in predictor["graph"]["parameters"]}
    assert names == {"version", "directory"}, "the parameters of serving.seldon.v1.ChatModel"
