"""What hone relies on in vLLM's routes for adapters, over the stand-in of other tests and over the real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from hone.errors import ConfigError
from hone.weights import AdapterBase, model_version_of, weights_digest
from serving.runtime.vllm import RESIDENT, load, reconcile, served, unload
from tests.support.tiny_model import make_tiny_model
from tests.support.vllm import RANK, WIDTH, Engine, make_adapter
from tests.support.web import serving

MAX_RANK = 8
REFUSED = "Call to add_lora method failed: Worker failed with error '"
ENGINES = ("stand-in", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and base of an engine."""
    if request.param == "stand-in":
        with serving(Engine("m-base", max_rank=MAX_RANK).app) as url:
            yield url, "m-base"
        return
    from tests.support.vllm_live import running_engine

    directory = tmp_path_factory.mktemp("vllm")
    base = make_tiny_model(directory / "base", hidden=WIDTH, heads=2)
    version = model_version_of(weights_digest(base))
    first = make_adapter(directory / "first", r=MAX_RANK)
    with running_engine(directory, (version, base), {"m-first": first}) as url:
        yield url, version


@pytest.fixture
def client(engine: tuple[str, str]) -> Iterator[httpx.Client]:
    """A client of an engine that serves its base alone."""
    with httpx.Client(base_url=engine[0], timeout=60, trust_env=False) as client:
        reconcile(client, engine[1], {})
        yield client


def ask_load(client: httpx.Client, name: str, directory: Path, **fields: Any) -> httpx.Response:
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(directory)} | fields)


def test_the_base_and_its_adapters_are_named_with_whom_they_lie_on(
    client: httpx.Client, engine: tuple[str, str], tmp_path: Path
) -> None:
    assert served(client) == {engine[1]: None}
    answer = ask_load(client, "m-1", make_adapter(tmp_path / "1"))
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'm-1' added successfully.")
    assert served(client) == {engine[1]: None, "m-1": engine[1]}
    answer = client.post("/v1/unload_lora_adapter", json={"lora_name": "m-1"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'm-1' removed successfully.")
    assert served(client) == {engine[1]: None}


def test_a_name_is_taken_once_and_the_bases_never(
    client: httpx.Client, engine: tuple[str, str], tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path / "1")
    assert ask_load(client, "m-1", directory).status_code == 200
    assert ask_load(client, "m-1", directory, load_inplace=True).status_code == 200
    check(ask_load(client, "m-1", directory), 400, "InvalidUserInput", "has already been loaded. If you want to load")
    check(ask_load(client, engine[1], directory), 400, "InvalidUserInput", "conflicts with a served base model")
    check(ask_load(client, "", directory), 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 16}, "LoRA rank 16 is greater than max_lora_rank 8."),
        ({"rank_pattern": {"q_proj": 16}}, "LoRA rank 16 is greater than max_lora_rank 8."),
        ({"use_dora": True}, "vLLM does not yet support DoRA."),
        ({"bias": "all"}, "Adapter bias is not supported."),
        ({"modules_to_save": ["lm_head"]}, "vLLM only supports modules_to_save being either None"),
        ({"module": "self_attn.wq"}, "While loading "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_cannot_be_served_is_refused_at_once(
    client: httpx.Client, engine: tuple[str, str], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    answer = ask_load(client, "m-1", make_adapter(tmp_path / "1", **changes))
    check(answer, 500, "InternalServerError", f"{REFUSED}{words}")
    assert served(client) == {engine[1]: None}


def test_a_folder_without_an_adapter_or_with_a_broken_one_is_told_apart(client: httpx.Client, tmp_path: Path) -> None:
    missing = ask_load(client, "m-1", tmp_path / "missing")
    check(missing, 404, "NotFoundError", "Loading lora m-1 failed: No adapter found for ")
    tensors = make_adapter(tmp_path / "1") / "adapter_model.safetensors"
    tensors.write_bytes(b"abc")
    check(ask_load(client, "m-1", tensors.parent), 500, "InternalServerError", "Error while deserializing header")
    tensors.unlink()
    check(ask_load(client, "m-1", tensors.parent), 500, "InternalServerError", "doesn't contain tensors")


def test_an_adapter_of_another_base_is_served_without_a_word(client: httpx.Client, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path / "1", module="self_attn.o_proj")
    (directory / "adapter_model.safetensors").unlink()
    narrow = np.ones((RANK, WIDTH // 2), np.float32)
    name = "base_model.model.model.layers.0.self_attn.o_proj"
    tensors = {f"{name}.lora_A.weight": narrow, f"{name}.lora_B.weight": narrow.T.copy()}
    save_file(tensors, directory / "adapter_model.safetensors")
    assert ask_load(client, "m-1", directory).status_code == 200, "so hone looks at base.json itself"


def test_hone_loads_only_what_names_the_engines_base(
    client: httpx.Client, engine: tuple[str, str], tmp_path: Path
) -> None:
    directory = make_adapter(tmp_path / "1")
    with pytest.raises(ConfigError, match=r"names no base, and vLLM takes an adapter of any: write its base\.json"):
        load(client, "m-1", directory)
    AdapterBase("cd" * 32, tmp_path).write(directory)
    for refuse in (lambda: load(client, "m-1", directory), lambda: reconcile(client, engine[1], {"m-1": directory})):
        with pytest.raises(ConfigError, match="m-1 is an adapter of m-cdcdcdcdcdcd, the engine serves"):
            refuse()
    assert served(client) == {engine[1]: None}


def test_what_is_not_there_cannot_be_unloaded(client: httpx.Client, engine: tuple[str, str]) -> None:
    for name in ("m-1", engine[1]):
        answer = client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        check(answer, 404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
    nameless = client.post("/v1/unload_lora_adapter", json={"lora_name": ""})
    check(nameless, 400, "InvalidUserInput", "'lora_name' needs to be provided to unload")
    unload(client, "m-1")


@pytest.mark.parametrize("act", ["load", "unload"])
def test_only_json_with_all_its_fields_is_read(client: httpx.Client, act: str) -> None:
    plain = client.post(f"/v1/{act}_lora_adapter", content=b"{}")
    check(plain, 400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
    for content in (b"{}", b'{"lora_name":'):
        answer = client.post(f"/v1/{act}_lora_adapter", content=content, headers={"content-type": "application/json"})
        check(answer, 400, "Bad Request", "validation error")


def check(answer: httpx.Response, code: int, kind: str, words: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (code, code, kind)
    assert words in error["message"]


@pytest.mark.parametrize("engine", ENGINES[1:], indirect=True)
def test_an_adapter_answers_on_when_its_folder_is_gone(
    client: httpx.Client, engine: tuple[str, str], tmp_path: Path
) -> None:
    """The engine ends where it must read a folder again: the command keeps as many in memory as hone loads."""
    adapters = {f"m-{n}": make_adapter(tmp_path / str(n)) for n in range(RESIDENT)}
    reconcile(client, engine[1], adapters)
    shutil.rmtree(tmp_path / "0")
    for name in [*adapters, engine[1], "m-0"]:
        body = {"model": name, "messages": [{"role": "user", "content": "Export?"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200, name
    assert client.get("/health").status_code == 200
