"""Arms behind Seldon: each chat names its version's own endpoint, in Seldon's protocol, and comes back in one piece.

v1 speaks Seldon's protocol (`jsonData`), v2 the Open Inference Protocol v2 (one BYTES tensor). Seldon does not stream:
a client that asked for a stream gets one chunk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from hone.settings import Settings, Upstream
from serving.gateway.upstreams import Opened, Target, UpstreamFailed, Upstreams, reading, retry_after_s
from serving.router import Router
from serving.traffic.seldon_v1 import service_name
from serving.traffic.seldon_v2 import model_name

REQUEST, RESPONSE = "chat_request", "chat_response"
Document = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One request to an arm."""

    url: str
    body: Document
    headers: dict[str, str]


class Line(Protocol):
    """How a line of Seldon is spoken to."""

    def call(self, version: str, chat: Document, answer_id: str) -> Call:
        """Return the request that this version answers, and no other."""
        ...

    def health_url(self, version: str) -> str:
        """Return an address that answers 200 while the version is ready."""
        ...

    def read(self, document: Document) -> Document:
        """Return the chat completion in an answer. Raises LookupError or ValueError where there is none."""
        ...

    def refusal(self, document: Document) -> str:
        """Return what the arm said against the request."""
        ...


@dataclass(frozen=True)
class LineV1:
    """The predictor's own Service, past the split of the SeldonDeployment."""

    name: str
    namespace: str
    arm_url: str

    def base(self, version: str) -> str:
        """Return the address of the version's Service."""
        return self.arm_url.format(service=service_name(self.name, version), namespace=self.namespace).rstrip("/")

    def call(self, version: str, chat: Document, answer_id: str) -> Call:
        """Return the prediction request."""
        body = {"meta": {"tags": {"answer_id": answer_id}}, "jsonData": chat}
        return Call(f"{self.base(version)}/api/v1.0/predictions", body, {})

    def health_url(self, version: str) -> str:
        """Return the health of the predictor, whose wrapper asks the runtime."""
        return f"{self.base(version)}/api/v1.0/health/status"

    def read(self, document: Document) -> Document:
        """Return `jsonData`."""
        return dict(document["jsonData"])

    def refusal(self, document: Document) -> str:
        """Return the status's text."""
        return str(document["status"]["info"])


@dataclass(frozen=True)
class LineV2:
    """One address for all models; the header names the model, which is no Experiment's default."""

    namespace: str
    arm_url: str

    def call(self, version: str, chat: Document, answer_id: str) -> Call:
        """Return the inference request."""
        name = model_name(version)
        text = msgspec.json.encode(chat).decode()
        tensor = {"name": REQUEST, "shape": [1], "datatype": "BYTES", "data": [text]}
        body = {"parameters": {"answer_id": answer_id}, "inputs": [tensor]}
        return Call(f"{self.base(version)}/v2/models/{name}/infer", body, {"seldon-model": name})

    def base(self, version: str) -> str:
        """Return the address of the mesh."""
        return self.arm_url.format(service=model_name(version), namespace=self.namespace).rstrip("/")

    def health_url(self, version: str) -> str:
        """Return the readiness of the model."""
        return f"{self.base(version)}/v2/models/{model_name(version)}/ready"

    def read(self, document: Document) -> Document:
        """Return the answer in the tensor `chat_response`."""
        (text,) = (one["data"][0] for one in document["outputs"] if one["name"] == RESPONSE)
        return msgspec.json.decode(text, type=Document)

    def refusal(self, document: Document) -> str:
        """Return the error's text."""
        return str(document["error"])


class Translated(Opened, frozen=True):
    """An answer that was rebuilt here, all of it, with our id and model name."""

    @property
    def echoes(self) -> bool:
        """It needs no rewriting."""
        return True


class SeldonUpstreams(Upstreams):
    """Versions are reached through Seldon; upstreams that an operator registered, as ever."""

    def __init__(
        self, line: Line, stable: Callable[[], str | None], timeout_s: float, others: Mapping[str, Upstream]
    ) -> None:
        """`stable` returns the version whose health counts. Make it inside the event loop that uses it."""
        super().__init__("seldon:", timeout_s, others)
        self.line, self.stable = line, stable

    async def open(self, target: Target, body: bytes, *, answer_id: str, model: str, stream: bool) -> Opened:
        """Ask the version's own endpoint and return its whole answer; raises UpstreamFailed as every upstream."""
        if target.url != self.runtime_url:
            return await super().open(target, body, answer_id=answer_id, model=model, stream=stream)
        chat = msgspec.json.decode(body, type=Document)
        version, usage = str(chat.pop("model")), bool((chat.pop("stream_options", None) or {}).get("include_usage"))
        chat.pop("stream", None)
        call = self.line.call(version, chat, answer_id)
        headers = {"content-type": "application/json", "accept-encoding": "identity", **call.headers}
        reply = await self.ask("POST", call.url, headers, msgspec.json.encode(call.body))
        raw = await reading(reply, reply.all)
        if reply.status != 200:
            refusal = attempt(self.line.refusal, raw) or raw[:2000].decode(errors="replace")
            raise UpstreamFailed(reply.status, refusal, retry_after_s=retry_after_s(reply.headers))
        completion = attempt(self.line.read, raw)
        if completion is None:
            raise UpstreamFailed(None, f"no chat completion in {raw[:200]!r}")
        completion |= {"id": answer_id, "model": model}
        return Translated(reply, as_events(completion, usage=usage) if stream else msgspec.json.encode(completion))

    async def _answers(self) -> bool:
        """Say whether the stable version is ready."""
        version = self.stable()
        return version is not None and await self.is_there(self.line.health_url(version))


def attempt(reader: Callable[[Document], Any], raw: bytes) -> Any:
    """Return what the reader finds in a JSON body, or None where it is not what was expected."""
    try:
        return reader(msgspec.json.decode(raw, type=Document))
    except (msgspec.DecodeError, LookupError, ValueError, TypeError, RecursionError):
        return None


def as_events(completion: Document, *, usage: bool) -> bytes:
    """Return a whole completion as the events of a stream: one chunk with the text, one with the reason, `[DONE]`."""
    base: Document = {key: completion.get(key) for key in ("id", "created", "model")}
    base["object"] = "chat.completion.chunk"
    choice = completion["choices"][0]
    chunks: list[Document] = [
        base | {"choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]},
        base | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}]},
    ]
    if usage:
        chunks.append(base | {"choices": [], "usage": completion.get("usage")})
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def open_upstreams(settings: Settings, router: Router) -> Upstreams:
    """Return the model servers that the settings name. Call it inside the event loop."""
    timeout_s, seldon = settings.gateway.upstream_timeout_s, settings.seldon
    if settings.traffic_backend == "local":
        is_hone = settings.runtime_kind == "hone"
        return Upstreams(settings.runtime_url, timeout_s, settings.upstreams, is_hone=is_hone)
    line: Line = LineV2(seldon.namespace, seldon.arm_url or "http://seldon-mesh.{namespace}")
    if settings.traffic_backend == "seldon_v1":
        line = LineV1(seldon.name, seldon.namespace, seldon.arm_url or "http://{service}.{namespace}:8000")
    return SeldonUpstreams(line, lambda: router.plan.stable if router.plan else None, timeout_s, settings.upstreams)
