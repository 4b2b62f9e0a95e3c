"""A server that answers as vLLM's OpenAI server does for models and adapters, and takes nothing that it would not.

`tests/contract/test_vllm_engine.py` holds it against the real one.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

WIDTH, RANK = 64, 4
"""Of an adapter that a test makes."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
"""What an adapter of a Llama may change."""


def make_adapter(directory: Path, *, module: str = "self_attn.q_proj", **changes: Any) -> Path:
    """An adapter of one module, by hand; `changes` are of its configuration."""
    directory.mkdir()
    name = f"base_model.model.model.layers.0.{module}"
    half = np.full((RANK, WIDTH), 0.1, np.float32)
    tensors = {f"{name}.lora_A.weight": half, f"{name}.lora_B.weight": half.T.copy()}
    save_file(tensors, directory / "adapter_model.safetensors")
    modules = [module.rpartition(".")[2]]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": modules, "bias": "none"} | changes
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/v1/load_lora_adapter`."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class Unload(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/v1/unload_lora_adapter`."""

    lora_name: str


class Engine:
    """`updating` is VLLM_ALLOW_RUNTIME_LORA_UPDATING: without it there are no routes for adapters."""

    def __init__(self, base: str = "base", *, max_rank: int = 64, updating: bool = True) -> None:
        self.base, self.max_rank = base, max_rank
        self.adapters: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        routes = [Route("/v1/models", self.models)]
        if updating:
            routes += [Route(f"/v1/{act}_lora_adapter", getattr(self, act), methods=["POST"]) for act in ACTS]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: detail})

    async def models(self, _: Request) -> Response:
        cards = [card(self.base, f"/models/{self.base}", None)]
        cards += [card(name, path, self.base) for name, path in self.adapters.items()]
        return JSONResponse({"object": "list", "data": cards})

    async def load(self, request: Request) -> Response:
        asked = await read(request, Load)
        if isinstance(asked, Response):
            return asked
        self.calls.append(("load", asked.lora_name))
        said = self.objection(asked)
        if said:
            return refusal(400, "InvalidUserInput", said)
        try:
            obstacle = why_not(Path(asked.lora_path), self.max_rank)
        except FileNotFoundError:
            said = f"Loading lora {asked.lora_name} failed: No adapter found for {asked.lora_path}"
            return refusal(404, "NotFoundError", said)
        if obstacle:
            said = (
                f"Call to add_lora method failed: Worker failed with error '{obstacle}', please check the stack trace"
            )
            return refusal(500, "InternalServerError", f"{said} above for the root cause")
        self.adapters[asked.lora_name] = asked.lora_path
        return success(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    def objection(self, asked: Load) -> str | None:
        """What it finds wrong before it reads a file."""
        if not asked.lora_name or not asked.lora_path:
            return "Both 'lora_name' and 'lora_path' must be provided."
        if asked.lora_name == self.base:
            return f"The lora adapter '{asked.lora_name}' conflicts with a served base model."
        if asked.lora_name in self.adapters and not asked.load_inplace:
            said = f"The lora adapter '{asked.lora_name}' has already been loaded."
            return f"{said} If you want to load the adapter in place, set 'load_inplace' to True."
        return None

    async def unload(self, request: Request) -> Response:
        asked = await read(request, Unload)
        if isinstance(asked, Response):
            return asked
        self.calls.append(("unload", asked.lora_name))
        if not asked.lora_name:
            said = "'lora_name' needs to be provided to unload a LoRA adapter."
            return refusal(400, "InvalidUserInput", said)
        if asked.lora_name not in self.adapters:
            return refusal(404, "NotFoundError", f"The lora adapter '{asked.lora_name}' cannot be found.")
        del self.adapters[asked.lora_name]
        return success(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


ACTS = ("load", "unload")


def why_not(directory: Path, max_rank: int) -> str | None:
    """Why an adapter is not taken. Its base, the width of its tensors and the truth of `r` are looked at by nobody.

    Raises:
        FileNotFoundError: there is none.
    """
    config = msgspec.json.decode((directory / "adapter_config.json").read_bytes())
    if config.get("use_dora"):
        return "vLLM does not yet support DoRA."
    if config.get("modules_to_save"):
        return (
            'vLLM only supports modules_to_save being either None or ["classifier", "score"] for classification '
            f"models. Unsupported modules_to_save: {config['modules_to_save']}"
        )
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max_rank:
        return f"LoRA rank {rank} is greater than max_lora_rank {max_rank}."
    if config.get("bias", "none") != "none":
        return "Adapter bias is not supported."
    tensors = directory / "adapter_model.safetensors"
    return foreign_modules(tensors) if tensors.exists() else f"{directory} doesn't contain tensors"


def foreign_modules(tensors: Path) -> str | None:
    """Why the tensors are not taken."""
    try:
        with safe_open(tensors, "np") as file:
            names = [name.removeprefix("base_model.model.").split(".lora_")[0] for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        return str(error)
    foreign = [name for name in names if name.rpartition(".")[2] not in MODULES]
    if not foreign:
        return None
    said = f"While loading {tensors.parent}, expected target modules in {set(MODULES)} but received {foreign}."
    return f"{said} Please verify that the loaded LoRA module is correct"


def card(name: str, root: str, parent: str | None) -> dict[str, Any]:
    length = 256 if parent is None else None
    facts = {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": root, "parent": parent}
    return facts | {"max_model_len": length, "permission": []}


def success(words: str) -> Response:
    return PlainTextResponse(words)


def refusal(code: int, kind: str, message: str, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, code)


async def detail(_: Request, error: Exception) -> Response:
    """What no route stands for is not an `error`."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code)


async def read(request: Request, shape: Any) -> Any:
    """The body, or what is answered in its place."""
    if request.headers.get("content-type") != "application/json":
        said = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        return refusal(400, "Bad Request", said)
    try:
        return msgspec.json.decode(await request.body(), type=shape)
    except msgspec.DecodeError as error:
        return refusal(400, "Bad Request", f"1 validation error:\n  {error}")
