"""vLLM's command line, and its adapters brought up to date over its own routes, by a server that speaks them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hone.errors import ConfigError, Retryable
from serving.__main__ import cli
from serving.runtime.vllm import command, reconcile
from tests.support.web import serving


class Engine:
    """Answers as vLLM's OpenAI server does for models and adapters."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {"m-old": "/models/m-old", "m-older": "/models/m-older"}
        self.calls: list[tuple[str, str]] = []
        routes = [Route("/v1/models", self.models)]
        routes += [Route(f"/v1/{act}_lora_adapter", getattr(self, act), methods=["POST"]) for act in ("load", "unload")]
        self.app = Starlette(routes=routes)

    async def models(self, _: Request) -> Response:
        names = [("base", None), *((name, "base") for name in self.adapters)]
        return JSONResponse({"object": "list", "data": [{"id": name, "parent": parent} for name, parent in names]})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        self.calls.append(("load", body["lora_name"]))
        if not Path(body["lora_path"]).is_dir():
            return JSONResponse({"message": f"No adapter found for {body['lora_path']}", "code": 404}, 404)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse("Success: LoRA adapter added successfully.")

    async def unload(self, request: Request) -> Response:
        body = await request.json()
        self.calls.append(("unload", body["lora_name"]))
        del self.adapters[body["lora_name"]]
        return PlainTextResponse("Success: LoRA adapter removed successfully.")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    with serving(engine.app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def adapter(directory: Path, rank: int) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_bytes(msgspec.json.encode({"r": rank, "peft_type": "LORA"}))
    return directory


def test_one_engine_serves_base_and_adapters_under_their_versions(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "1", 8), adapter(tmp_path / "2", 12)
    found = command(("m-base", Path("/models/b")), {"m-1": one, "m-2": two}, "127.0.0.1", 8710)
    assert found[:5] == ["vllm", "serve", "/models/b", "--served-model-name", "m-base"]
    assert found[found.index("--max-lora-rank") + 1] == "16", "the smallest of vLLM's that both fit in"
    assert "--enable-lora" in found
    assert found[-3:] == ["--lora-modules", f"m-1={one}", f"m-2={two}"]


def test_an_adapter_that_is_none_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m-1: .*adapter_config\.json is not"):
        command(("b", tmp_path), {"m-1": tmp_path}, "127.0.0.1", 1)
    with pytest.raises(ConfigError, match="rank 1024"):
        command(("b", tmp_path), {"m-1": adapter(tmp_path / "1", 1024)}, "127.0.0.1", 1)


def test_new_adapters_are_loaded_before_old_ones_go_and_the_rest_is_left_alone(
    engine: Engine, client: httpx.Client, tmp_path: Path
) -> None:
    wanted = {"m-old": Path("/models/m-old"), "m-new": adapter(tmp_path / "new", 8)}
    assert reconcile(client, "base", wanted) == (["m-new"], ["m-older"])
    assert engine.calls == [("load", "m-new"), ("unload", "m-older")]
    assert set(engine.adapters) == {"m-old", "m-new"}
    assert reconcile(client, "base", wanted) == ([], [])


def test_an_adapter_that_the_engine_refuses_takes_no_other_away(
    engine: Engine, client: httpx.Client, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"No adapter found"):
        reconcile(client, "base", {"m-new": tmp_path / "missing"})
    assert set(engine.adapters) == {"m-old", "m-older"}


def test_another_base_or_no_engine_is_told(client: httpx.Client) -> None:
    with pytest.raises(ConfigError, match="not the base other"):
        reconcile(client, "other", {})
    with httpx.Client(base_url="http://127.0.0.1:9", trust_env=False) as nobody, pytest.raises(Retryable):
        reconcile(nobody, "base", {})


def test_the_command_prints_what_a_shell_takes_and_reconciles_by_address(
    engine: Engine, url: str, tmp_path: Path
) -> None:
    base = ["vllm", "--base", "base=/models/b"]
    printed = CliRunner().invoke(cli, [*base, "--adapter", f"m-1={adapter(tmp_path / '1', 8)}"]).output
    assert printed.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve /models/b --served-model-name base ")
    done = CliRunner().invoke(cli, [*base, "--adapter", "m-old=/models/m-old", "--reconcile", url])
    assert done.output == "loaded nothing; unloaded m-older\n"
    assert set(engine.adapters) == {"m-old"}
