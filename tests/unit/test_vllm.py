"""vLLM's command line, and its adapters brought up to date over its own routes, by a server that speaks them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from hone.errors import ConfigError, Retryable
from hone.settings import Settings
from hone.weights import AdapterBase
from serving.__main__ import cli
from serving.gateway.seldon import open_upstreams
from serving.runtime.vllm import command, reconcile
from serving.traffic.choice import open_backend
from serving.traffic.vllm import VllmTraffic
from tests.support.platform import make_router
from tests.support.vllm import Engine, make_adapter
from tests.support.web import serving

DIGEST = "ab" * 32


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    engine.adapters = {"m-old": "/models/m-old", "m-older": "/models/m-older"}
    return engine


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    with serving(engine.app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def test_one_engine_serves_base_and_adapters_under_their_versions(tmp_path: Path) -> None:
    one, two = make_adapter(tmp_path / "1", r=8), make_adapter(tmp_path / "2", r=12)
    found = command(("m-base", Path("/models/b")), {"m-1": one, "m-2": two}, "127.0.0.1", 8710)
    assert found[:5] == ["vllm", "serve", "/models/b", "--served-model-name", "m-base"]
    assert found[found.index("--max-lora-rank") + 1] == "16", "the smallest of vLLM's that both fit in"
    assert "--enable-lora" in found
    assert found[found.index("--max-cpu-loras") + 1] == "8", "none of them is read from its folder again"
    assert found[-3:] == ["--lora-modules", f"m-1={one}", f"m-2={two}"]


def test_an_adapter_that_is_none_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m-1: .*adapter_config\.json is not"):
        command(("b", tmp_path), {"m-1": tmp_path}, "127.0.0.1", 1)
    with pytest.raises(ConfigError, match="rank 1024"):
        command(("b", tmp_path), {"m-1": make_adapter(tmp_path / "1", r=1024)}, "127.0.0.1", 1)


def test_an_adapters_rank_is_the_largest_of_its_modules(tmp_path: Path) -> None:
    found = command(("b", tmp_path), {"m-1": make_adapter(tmp_path / "1", rank_pattern={"q_proj": 30})}, "127.0.0.1", 1)
    assert found[found.index("--max-lora-rank") + 1] == "32"


def test_the_gateway_tells_an_engine_no_answers_id(tmp_path: Path) -> None:
    async def echoes(kind: str) -> bool:
        upstreams = open_upstreams(Settings(runtime_kind=kind), make_router(tmp_path))  # type: ignore[arg-type]
        try:
            return upstreams.target("m-1").echoes
        finally:
            await upstreams.close()

    assert asyncio.run(echoes("hone"))
    assert not asyncio.run(echoes("vllm")), "it is a credential, and the engine does not answer with it"


def test_new_adapters_are_loaded_before_old_ones_go_and_the_rest_is_left_alone(
    engine: Engine, client: httpx.Client, tmp_path: Path
) -> None:
    wanted = {"m-old": Path("/models/m-old"), "m-new": make_adapter(tmp_path / "new", r=8)}
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


def test_an_engine_hears_whole_paths(
    engine: Engine, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    reconcile(client, "base", {"m-new": Path("new")})
    assert engine.adapters == {"m-new": str(tmp_path / "new")}, "others are the engine's own, or names on a hub"


def test_another_base_or_no_engine_is_told(client: httpx.Client) -> None:
    with pytest.raises(ConfigError, match="not the base other"):
        reconcile(client, "other", {})
    with httpx.Client(base_url="http://127.0.0.1:9", trust_env=False) as nobody, pytest.raises(Retryable):
        reconcile(nobody, "base", {})


def test_the_command_prints_what_a_shell_takes_and_reconciles_by_address(
    engine: Engine, url: str, tmp_path: Path
) -> None:
    base = ["vllm", "--base", "base=/models/b"]
    printed = CliRunner().invoke(cli, [*base, "--adapter", f"m-1={make_adapter(tmp_path / '1', r=8)}"]).output
    assert printed.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve /models/b --served-model-name base ")
    done = CliRunner().invoke(cli, [*base, "--adapter", "m-old=/models/m-old", "--reconcile", url])
    assert done.output == "loaded nothing; unloaded m-older\n"
    assert set(engine.adapters) == {"m-old"}


def on_base(directory: Path, digest: str = DIGEST, rank: int = 8) -> Path:
    AdapterBase(digest, Path("/models/base")).write(make_adapter(directory, r=rank))
    return directory


@pytest.fixture
def backend(url: str, engine: Engine) -> Iterator[VllmTraffic]:
    engine.base, engine.adapters = f"m-{DIGEST[:12]}", {}
    with open_backend(Settings(runtime_kind="vllm", runtime_url=url, router_urls=())) as backend:
        assert isinstance(backend, VllmTraffic)
        yield backend


def test_the_controllers_backend_loads_and_unloads_versions_and_leaves_the_base_alone(
    backend: VllmTraffic, engine: Engine, tmp_path: Path
) -> None:
    directory = str(on_base(tmp_path / "new"))
    for _ in range(2):
        backend.prepare("m-new", directory)
        backend.prepare(engine.base, "/models/base")
    assert backend._models() == {engine.base, "m-new"}
    for version in ("m-new", "m-new", engine.base, "m-never"):
        backend.teardown(version)
    assert backend._models() == {engine.base}
    assert engine.calls == [("load", "m-new"), ("unload", "m-new")]


def test_what_the_engine_cannot_serve_is_said_and_tried_again(
    backend: VllmTraffic, engine: Engine, tmp_path: Path
) -> None:
    refused = {
        "is an adapter of m-cdcdcdcdcdcd, the engine serves": on_base(tmp_path / "other", "cd" * 32),
        "is not the configuration of an adapter": tmp_path,
        "LoRA rank 128 is greater": on_base(tmp_path / "large", rank=128),
    }
    for words, directory in refused.items():
        with pytest.raises(Retryable, match=words):
            backend.prepare("m-new", str(directory))
    assert engine.adapters == {}


def test_an_engine_that_may_not_update_or_is_away_is_named(tmp_path: Path) -> None:
    with (
        serving(Engine(f"m-{DIGEST[:12]}", updating=False).app) as url,
        VllmTraffic([], url, "key") as backend,
        pytest.raises(Retryable, match="needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        backend.prepare("m-new", str(on_base(tmp_path / "new")))
    with VllmTraffic([], "http://127.0.0.1:9", "key") as backend:
        assert backend._models() == frozenset()
        with pytest.raises(Retryable, match="does not answer"):
            backend.teardown("m-new")
