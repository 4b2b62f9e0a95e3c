"""The model runtime over HTTP: versions come and go, requests meet in batches, and clients may leave."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from hone.weights import weights_digest
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from tests.support.tiny_model import make_tiny_model
from tests.support.web import serving

HI = [{"role": "user", "content": "How do I share my order?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(directory / name, seed) for seed, name in enumerate(("m-1", "m-2"))}


@pytest.fixture
def runtime(models: dict[str, Path]) -> Iterator[httpx.Client]:
    app = runtime_app({"m-1": load_model("m-1", models["m-1"])})
    with serving(app) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, model: str = "m-1", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": HI, "max_tokens": 8, "seed": 1} | fields
    return client.post(
        "/v1/chat/completions", json=body, headers={"X-Request-Id": "chatcmpl-x", "X-Model-Alias": "hone"}
    )


def test_the_callers_id_and_model_name_are_echoed_and_said_to_be(runtime: httpx.Client) -> None:
    for stream in (False, True):
        answer = ask(runtime, stream=stream)
        assert answer.headers["x-hone-echo"] == "id,model"
        assert '"id":"chatcmpl-x"' in answer.text
        assert '"model":"hone"' in answer.text
        assert "m-1" not in answer.text


def test_a_version_is_loaded_listed_with_its_digest_and_unloaded(
    runtime: httpx.Client, models: dict[str, Path]
) -> None:
    assert ask(runtime, "m-2").status_code == 404
    body = {"model_version": "m-2", "directory": str(models["m-2"])}
    for _ in range(2):
        assert runtime.post("/v1/models/load", json=body).status_code == 200
    listed = {model["id"]: model["digest"] for model in runtime.get("/v1/models").json()["data"]}
    assert listed == {name: weights_digest(directory) for name, directory in models.items()}
    assert ask(runtime, "m-2").status_code == 200
    assert runtime.delete("/v1/models/m-2").status_code == 204
    assert runtime.delete("/v1/models/m-2").status_code == 404
    assert ask(runtime, "m-2").status_code == 404


def test_a_version_never_changes_its_weights(runtime: httpx.Client, models: dict[str, Path]) -> None:
    before = runtime.get("/v1/models").json()
    answer = runtime.post("/v1/models/load", json={"model_version": "m-1", "directory": str(models["m-2"])})
    assert (answer.status_code, "rename it" in answer.json()["detail"]) == (409, True)
    assert runtime.get("/v1/models").json() == before


def test_a_directory_that_is_no_model_is_refused_and_the_others_go_on(runtime: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    for directory in (tmp_path, tmp_path / "missing"):
        answer = runtime.post("/v1/models/load", json={"model_version": "m-3", "directory": str(directory)})
        assert (answer.status_code, answer.json()["status"]) == (422, 422)
        assert str(directory) in answer.json()["detail"]
    assert ask(runtime).status_code == 200


async def ask_together(url: str, number: int) -> list[str]:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        bodies = [{"model": "m-1", "messages": HI, "max_tokens": 5 + i, "seed": i} for i in range(number)]
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
    return [answer.json()["choices"][0]["message"]["content"] for answer in answers]


def test_requests_at_the_same_time_share_batches_and_get_the_answers_they_would_get_alone(
    runtime: httpx.Client,
) -> None:
    together = asyncio.run(ask_together(str(runtime.base_url), 20))
    alone = [ask(runtime, max_tokens=5 + i, seed=i).json()["choices"][0]["message"]["content"] for i in range(20)]
    assert together == alone
    page = runtime.get("/metrics").text
    assert 'hone_runtime_batch_rows_bucket{le="16.0"}' in page
    largest = float(page.split('hone_runtime_batch_rows_bucket{le="4.0"} ')[1].split()[0])
    assert float(page.split("hone_runtime_batch_rows_count ")[1].split()[0]) > largest, (
        "some batch had more than 4 rows"
    )


async def ask_late(url: str) -> list[str]:
    """Begin a long answer and then ask for a short one; return who came to an end, in order."""
    ended: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        begun = asyncio.Event()

        async def long() -> None:
            body = {"model": "m-1", "messages": HI, "max_tokens": 400, "stream": True, "temperature": 2, "seed": 3}
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    begun.set()
            ended.append("long")

        async def short() -> None:
            await begun.wait()
            body = {"model": "m-1", "messages": HI, "max_tokens": 3, "seed": 1}
            await client.post("/v1/chat/completions", json=body)
            ended.append("short")

        await asyncio.gather(long(), short())
    return ended


def test_a_short_answer_joins_a_running_batch_and_ends_before_it(runtime: httpx.Client) -> None:
    tries = (asyncio.run(ask_late(str(runtime.base_url))) for _ in range(5))  # a busy machine may ask too late
    assert ["short", "long"] in tries


async def swap_under_load(url: str, directory: str) -> list[int]:
    """Ask without a pause while the version asked for is loaded, and the one before is unloaded."""
    statuses: list[int] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        serving, over = ["m-1"], asyncio.Event()

        async def people() -> None:
            while not over.is_set():
                body = {"model": serving[-1], "messages": HI, "max_tokens": 12}
                statuses.append((await client.post("/v1/chat/completions", json=body)).status_code)

        crowd = [asyncio.create_task(people()) for _ in range(4)]
        for number in range(6):
            new = "m-2" if number % 2 == 0 else "m-1"
            await client.post("/v1/models/load", json={"model_version": new, "directory": directory.format(new)})
            serving.append(new)
            before = len(statuses)
            while len(statuses) < before + 4:
                await asyncio.sleep(0.01)
            await client.delete(f"/v1/models/{serving[-2]}")
        over.set()
        await asyncio.gather(*crowd)
    return statuses


def test_no_request_is_refused_while_versions_are_swapped(runtime: httpx.Client, models: dict[str, Path]) -> None:
    directory = str(models["m-1"]).replace("m-1", "{}")
    statuses = asyncio.run(swap_under_load(str(runtime.base_url), directory))
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_stream_says_its_usage_as_openai_does(runtime: httpx.Client) -> None:
    text = ask(runtime, stream=True, stream_options={"include_usage": True}).text
    *_, last = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] <= 8


def test_a_prompt_that_leaves_no_room_is_refused_and_a_long_answer_ends_at_the_context(runtime: httpx.Client) -> None:
    long = [{"role": "user", "content": "order " * 300}]
    answer = ask(runtime, messages=long)
    assert (answer.status_code, answer.json()["title"]) == (400, "context_length_exceeded")
    most = ask(runtime, max_tokens=100_000, temperature=1.5).json()["usage"]
    assert most["total_tokens"] <= 256


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"messages": []}])
def test_sampling_out_of_range_is_refused(runtime: httpx.Client, fields: dict[str, Any]) -> None:
    assert ask(runtime, **fields).status_code == 400


def test_texts_are_scored_and_embedded(runtime: httpx.Client) -> None:
    items = [{"messages": HI, "completion": "Press Share."}, {"messages": HI, "completion": ""}]
    scored = runtime.post("/v1/score", json={"model": "m-1", "items": items}).json()
    assert scored["kind"] == "logprob"
    assert all(score < 0 for score in scored["scores"])
    embedded = runtime.post("/v1/embed", json={"model": "m-1", "texts": ["one", "two"]}).json()["embeddings"]
    assert [len(vector) for vector in embedded] == [32, 32]
    assert embedded[0] != embedded[1]
    assert runtime.post("/v1/embed", json={"model": "m-9", "texts": ["x"]}).status_code == 404
    assert runtime.post("/v1/score", json={"model": "m-1", "items": []}).status_code == 422


def test_a_client_that_leaves_frees_the_batch_for_others(runtime: httpx.Client) -> None:
    with runtime.stream(
        "POST", "/v1/chat/completions", json={"model": "m-1", "messages": HI, "stream": True}
    ) as answer:
        next(answer.iter_bytes())
    assert ask(runtime).status_code == 200


@pytest.mark.parametrize("program", ["gateway", "runtime"])
def test_a_port_in_use_is_one_line_that_names_program_and_port(program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "serving", program, "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"{program} wants port {port}" in done.stderr
    assert "Traceback" not in done.stderr
