"""A server that answers as vLLM's OpenAI server does for models and adapters, and takes nothing that it would not."""

from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


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
        self.app = Starlette(routes=routes)

    async def models(self, _: Request) -> Response:
        cards = [card(self.base, f"/models/{self.base}", None)]
        cards += [card(name, path, self.base) for name, path in self.adapters.items()]
        return JSONResponse({"object": "list", "data": cards})

    async def load(self, request: Request) -> Response:
        asked = await read(request, Load)
        if isinstance(asked, Response):
            return asked
        self.calls.append(("load", asked.lora_name))
        if not asked.lora_name or not asked.lora_path:
            return refusal(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if asked.lora_name in self.adapters and not asked.load_inplace:
            said = f"The lora adapter '{asked.lora_name}' has already been loaded."
            return refusal(400, "InvalidUserInput", said)
        config = Path(asked.lora_path) / "adapter_config.json"
        if not config.exists():
            said = f"Loading lora {asked.lora_name} failed: No adapter found for {asked.lora_path}"
            return refusal(404, "NotFoundError", said)
        rank = msgspec.json.decode(config.read_bytes())["r"]
        if rank > self.max_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            return refusal(500, "InternalServerError", said)
        self.adapters[asked.lora_name] = asked.lora_path
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        asked = await read(request, Unload)
        if isinstance(asked, Response):
            return asked
        self.calls.append(("unload", asked.lora_name))
        if asked.lora_name not in self.adapters:
            return refusal(404, "NotFoundError", f"The lora adapter '{asked.lora_name}' cannot be found.")
        del self.adapters[asked.lora_name]
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


ACTS = ("load", "unload")


def card(name: str, root: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": root, "parent": parent}


def refusal(code: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, code)


async def read(request: Request, shape: Any) -> Any:
    """The body, or what is answered in its place."""
    if request.headers.get("content-type") != "application/json":
        return refusal(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        return msgspec.json.decode(await request.body(), type=shape)
    except msgspec.DecodeError as error:
        return refusal(400, "Bad Request", str(error))
