"""A real vLLM engine under the gateway and the controller: one base, stable and canary beside it as adapters."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from hone.records import TrafficPlan
from hone.weights import model_version_of, weights_digest
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from serving.runtime.vllm import served
from tests.support.crowd import ANSWERS, QUESTION, Crowd, platform, read, register
from tests.support.gateway import Served, gateway
from tests.support.ingest_process import wait_for
from tests.support.vllm_live import make_family, running_engine
from tests.support.web import serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
FAMILY = {"root": "Reset the password.", **ANSWERS}
"""What each model says: the shared weights, and three adapters of them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_family(tmp_path_factory.mktemp("family"), FAMILY)


@pytest.fixture(scope="module")
def versions(models: dict[str, Path]) -> dict[str, str]:
    return {name: model_version_of(weights_digest(directory)) for name, directory in models.items()}


@pytest.fixture(scope="module")
def engine(
    models: dict[str, Path], versions: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of an engine that was started with the root and stable's adapter."""
    directory = tmp_path_factory.mktemp("vllm")
    base, stable = ((versions[name], models[name]) for name in ("root", "base"))
    with (
        running_engine(directory, base, dict([stable])) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
def door(engine: httpx.Client, versions: dict[str, str], tmp_path: Path) -> Iterator[Served]:
    """A gateway before the engine."""
    settings = {"runtime_kind": "vllm"}
    with gateway(tmp_path, str(engine.base_url), stable=versions["base"], settings=settings) as door:
        yield door


def question(**fields: Any) -> dict[str, Any]:
    return {"model": "hone", "messages": QUESTION, "temperature": 0} | fields


def load(engine: httpx.Client, version: str, directory: Path) -> None:
    if version not in served(engine):
        body = {"lora_name": version, "lora_path": str(directory)}
        assert engine.post("/v1/load_lora_adapter", json=body).status_code == 200


def test_every_version_answers_as_hones_own_runtime_does(
    engine: httpx.Client, models: dict[str, Path], versions: dict[str, str]
) -> None:
    ours = {versions[name]: load_model(versions[name], directory) for name, directory in models.items()}
    with serving(runtime_app(ours)) as url:
        for name, version in versions.items():
            if name != "root":
                load(engine, version, models[name])
            body = question(model=version)
            theirs, own = (httpx.post(f"{at}/v1/chat/completions", json=body).json() for at in (engine.base_url, url))
            assert theirs["choices"][0]["message"]["content"] == own["choices"][0]["message"]["content"] == FAMILY[name]
            assert theirs["choices"][0]["finish_reason"] == own["choices"][0]["finish_reason"] == "stop"
            assert theirs["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]
            assert theirs["usage"]["completion_tokens"] == own["usage"]["completion_tokens"] + 1, "its end counts"


def test_both_arms_answer_at_once_from_one_engine_under_the_gateways_ids(
    door: Served, engine: httpx.Client, models: dict[str, Path], versions: dict[str, str]
) -> None:
    stable, canary = versions["base"], versions["good"]
    load(engine, canary, models["good"])
    expires_at = datetime.now(UTC) + timedelta(seconds=60)
    plan = TrafficPlan(
        fence=1, stable=stable, canary=canary, canary_weight=0.5, rollout_id=UUID(int=7), expires_at=expires_at
    )
    door.take(plan)

    def visit(number: int) -> tuple[str, str]:
        options = {"stream_options": {"include_usage": True}} if number % 4 == 1 else {}
        answer = door.chat(f"user {number}", **question(stream=number % 2 == 1, max_tokens=20, **options))
        assert answer.status_code == 200, answer.text
        assert stable not in answer.text, "which version answers is nobody's to know"
        assert canary not in answer.text
        return read(answer)

    with ThreadPoolExecutor(8) as pool:
        answers = dict(pool.map(visit, range(24)))
    assert set(answers.values()) == {ANSWERS["base"], ANSWERS["good"]}
    rows = door.responses(24)
    said = {stable: ANSWERS["base"], canary: ANSWERS["good"]}
    assert all(row.completion == said[row.model_version] and row.completed for row in rows)
    assert sum(row.num_completion_tokens is not None for row in rows) == 18, "not in streams that nobody asks it for"
    assert len({row.response_id for row in rows}) == 24
    assert len(answers) == 24
    for answer_id in answers:
        assert door.tell({"kind": "thumbs", "response_id": answer_id, "value": 1}).status_code == 202


def test_a_client_that_leaves_ends_its_answer_in_the_engine(door: Served, engine: httpx.Client) -> None:
    body = question(stream=True, max_tokens=200, ignore_eos=True)

    async def leave() -> None:
        async with (
            httpx.AsyncClient(base_url=door.url, headers=door.http.headers, trust_env=False) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            await anext(answer.aiter_bytes())

    asyncio.run(leave())
    wait_for(lambda: "vllm:num_requests_running{" in engine.get("/metrics").text and busy(engine) == 0, 20)
    assert not door.responses(1)[0].completed


def busy(engine: httpx.Client) -> float:
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def test_a_prompt_that_is_too_long_is_the_clients_fault(door: Served) -> None:
    answer = door.chat("ann", messages=[{"role": "user", "content": "How do I " * 400}])
    assert answer.status_code == 400
    assert "maximum context length is 256 tokens" in answer.text


def test_a_good_challenger_is_promoted_and_a_bad_one_rolled_back_in_one_engine(
    engine: httpx.Client,
    models: dict[str, Path],
    store_url: str,
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> None:
    versions = register(sessions, {name: models[name] for name in ANSWERS})
    values = {"runtime_kind": "vllm", "runtime_url": str(engine.base_url).rstrip("/")}
    for name, parent in served(engine).items():
        if parent and name != versions["base"]:
            engine.post("/v1/unload_lora_adapter", json={"lora_name": name})
    with platform(tmp_path, store_url, sessions, values) as client:
        crowd = Crowd(sessions, client, versions)
        good = crowd.crowd(crowd.start("good", "base"))
        assert (good.phase, good.reason.split(":")[0]) == ("promoted", "better")
        assert crowd.stable() == versions["good"]
        bad = crowd.crowd(crowd.start("bad", "good"))
        assert bad.phase == "rolled_back"
        assert crowd.stable() == versions["good"]
        crowd.check_answers()
        wait_for(lambda: {name for name, parent in served(engine).items() if parent} == {versions["good"]}, 20)
