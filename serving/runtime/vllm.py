"""vLLM as the runtime of both arms: one engine holds the base once, and each version beside it is a LoRA adapter.

Held against the real server by tests/contract/test_vllm_engine.py. See docs/deploy.md.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from hone.errors import ConfigError, Retryable
from hone.weights import BASE, AdapterBase, read_base

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Without it vLLM has no routes to load and unload adapters."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""
RESIDENT = 8
"""How many adapters the engine keeps in memory, at least; of those beyond it reads the folder again at each use."""
TIMEOUT_S = 120.0


class AdapterConfig(msgspec.Struct):
    """What is read of peft's `adapter_config.json`."""

    r: int
    rank_pattern: dict[str, int] | None = None
    "Modules of another rank than `r`."


def command(base: tuple[str, Path], adapters: Mapping[str, Path], host: str, port: int) -> list[str]:
    """Return the arguments of an engine that serves the base and the adapters under their versions.

    Two adapters (stable and canary) may share each batch; more of them may be loaded and wait in host memory. An engine
    ends, with every arm, if it must read a folder again that is gone: so it never has to, for `RESIDENT` of them.

    Raises:
        ConfigError: a folder holds no adapter, one of another base, or one of a rank that vLLM does not take.
    """
    version, directory = base
    paths = {name: path.absolute() for name, path in adapters.items()}
    for name, path in paths.items():
        require_base(name, path, [version])
    arguments = ["vllm", "serve", str(directory), "--served-model-name", version, "--host", host, "--port", str(port)]
    arguments += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(max_rank(adapters))]
    arguments += ["--max-cpu-loras", str(max(RESIDENT, len(adapters)))]
    if adapters:
        arguments += ["--lora-modules", *(f"{name}={path}" for name, path in paths.items())]
    return arguments


def written(arguments: list[str]) -> str:
    """Return the command as a shell takes it, with the environment that it needs."""
    return " ".join([*(f"{name}={value}" for name, value in ENVIRONMENT.items()), shlex.join(arguments)])


def max_rank(adapters: Mapping[str, Path]) -> int:
    """Return the smallest of vLLM's ranks that all adapters fit in; without adapters, 64 for those to come."""
    if not adapters:
        return 64
    needed = max(rank_of(name, path) for name, path in adapters.items())
    fitting = [rank for rank in RANKS if rank >= needed]
    if not fitting:
        raise ConfigError(f"an adapter has rank {needed}: vLLM takes at most {RANKS[-1]}; merge it into the base")
    return fitting[0]


def rank_of(version: str, directory: Path) -> int:
    """Return the adapter's rank: the largest of its modules'."""
    path = directory / "adapter_config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=AdapterConfig)
        return max([config.r, *(config.rank_pattern or {}).values()])
    except (OSError, msgspec.DecodeError) as error:
        detail = f"{version}: {path} is not the configuration of an adapter ({error})"
        raise ConfigError(f"{detail}: give the folder that peft saved") from None


def require_base(version: str, directory: Path, bases: Sequence[str]) -> AdapterBase | None:
    """Return the base that an adapter names; None: it names none.

    The engine does not look: it takes an adapter of another base where its tensors go in, and answers with the mixture.

    Raises:
        ConfigError: it is none of `bases`.
    """
    base = read_base(directory)
    if base is not None and base.model_version not in bases:
        detail = f"{version} is an adapter of {base.model_version}, the engine serves {', '.join(bases) or 'no base'}"
        raise ConfigError(f"{detail}: give that base to an engine, under its own name")
    return base


def reconcile(client: httpx.Client, base: str, adapters: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Make a running engine hold exactly these adapters; return what was loaded and what was unloaded.

    New ones are loaded before old ones go, and one that is there already is left alone: names are content-addressed,
    so the same name is the same weights. Unload a version only once no plan names it any more.

    Raises:
        ConfigError: the engine serves another base than this or an adapter's, or refuses an adapter; its words are in
            the message.
        Retryable: the engine does not answer.
    """
    there = served(client)
    if base not in there:
        raise ConfigError(f"the engine serves {', '.join(sorted(there)) or 'nothing'}, not the base {base}")
    loaded = [name for name in adapters if name not in there]
    unloaded = sorted(name for name, parent in there.items() if parent is not None and name not in adapters)
    for name in loaded:
        require_base(name, adapters[name], [base])
        ask_load(client, name, adapters[name])
    for name in unloaded:
        call(client, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
    return loaded, unloaded


def load(client: httpx.Client, version: str, directory: Path) -> None:
    """Make a running engine serve an adapter under its version; one that is there stays as it is.

    Raises:
        ConfigError: the directory holds no adapter, does not name its base, the base is not the engine's, or the engine
            refuses it.
        Retryable: the engine does not answer.
    """
    there = served(client)
    if version in there:
        return
    rank_of(version, directory)
    if require_base(version, directory, [name for name, parent in there.items() if parent is None]) is None:
        raise ConfigError(f"{version}: {directory} names no base, and vLLM takes an adapter of any: write its {BASE}")
    ask_load(client, version, directory)


def ask_load(client: httpx.Client, version: str, directory: Path) -> None:
    """Have an adapter loaded. A path that is not absolute is the engine's own, or a name that it looks up on a hub."""
    call(client, "POST", "/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(directory.absolute())})


def unload(client: httpx.Client, version: str) -> None:
    """Take an adapter out of a running engine; the base stays, and one that is gone is no error. Raises as `load`."""
    if served(client).get(version) is not None:
        call(client, "POST", "/v1/unload_lora_adapter", {"lora_name": version})


def served(client: httpx.Client) -> dict[str, str | None]:
    """Return the names that the engine serves, each with the base that it is an adapter of, or None."""
    listed = msgspec.json.decode(call(client, "GET", "/v1/models"), type=dict[str, Any])
    return {model["id"]: model.get("parent") for model in listed["data"]}


def call(client: httpx.Client, method: str, path: str, body: Mapping[str, str] | None = None) -> bytes:
    """Return what the engine answers."""
    try:
        answer = client.request(method, path, json=body, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Retryable(f"vLLM at {client.base_url} does not answer ({error!r}): is it running?") from None
    if answer.status_code == 404 and b'"error"' not in answer.content:  # an adapter that is not there is an `error`
        raise ConfigError(f"vLLM has no route {path}: it needs {next(iter(ENVIRONMENT))}=True")
    if answer.status_code != 200:
        raise ConfigError(f"vLLM answers {answer.status_code} to {path} {dict(body or {})}: {answer.text[:300]}")
    return answer.content
