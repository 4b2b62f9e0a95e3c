"""The gateway's API as an OpenAPI 3.1 document, made from the structs that read the requests."""

from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

from hone.records import TrafficPlan
from hone.store.keys import Scope
from serving.gateway.acts import ActBody
from serving.gateway.ask import ChatBody
from serving.gateway.compat import LangfuseScore, TensorZeroFeedback
from serving.gateway.stored import ActionBody
from serving.gateway.traffic import BreakGlass, NewUpstream
from serving.http import FieldError

REF = "#/components/schemas/{name}"


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """Several acts, taken whole or not at all."""

    events: list[ActBody]


class Accepted(msgspec.Struct):
    """The broker has these events."""

    event_ids: list[UUID]


class OpenAiError(msgspec.Struct):
    """The same in the shape that OpenAI's clients read."""

    message: str
    type: str
    code: int


class ProblemBody(msgspec.Struct, kw_only=True):
    """An answer that is not a success (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
    error: OpenAiError


@dataclass(frozen=True)
class Route:
    """One operation. `body` and `answer` are types (a tuple: one of them), None for none or any JSON."""

    method: str
    path: str
    summary: str
    scope: Scope | None
    status: int = 200
    body: Any = None
    answer: Any = None
    problems: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()


CHAT_HEADERS = ("X-User-Id", "X-Conversation-Id", "Idempotency-Key")
STORED = (404, 422, 503)
FEEDBACK_PROBLEMS = (400, 401, 403, 404, 408, 413, 422, 429, 503)
ROUTES = (
    Route("post", "/v1/chat/completions", "OpenAI's chat, streaming or whole", Scope.CHAT, body=ChatBody,
          problems=(400, 413, 422, 429, 502, 503), headers=CHAT_HEADERS),
    Route("post", "/v1/feedback", "Acts of feedback; 202 once the broker has them", None, 202, body=(ActBody, Batch),
          answer=Accepted, problems=(400, *FEEDBACK_PROBLEMS), headers=("X-User-Id", "Idempotency-Key")),
    Route("get", "/v1/models", "Names that a chat may ask for", Scope.CHAT),
    Route("get", "/v1/lineage/{id}", "From an answer to what trained its model", Scope.REVIEW, problems=STORED),
    Route("get", "/v1/rollouts", "Rollouts, the newest first", Scope.REVIEW, problems=(503,)),
    Route("post", "/v1/rollouts/{rollout_id}:{action}", "Promote, roll back, pause or resume", Scope.ROLLOUT_WRITE, 202,
          body=ActionBody, problems=(400, 404, 409, 413, 422, 503)),
    Route("delete", "/v1/users/{user}", "Forget a user", Scope.ADMIN, problems=(503,)),
    Route("get", "/v1/router/plan", "The plan in force", Scope.ROLLOUT_WRITE),
    Route("put", "/v1/router/plan", "Put a plan in force", Scope.ROLLOUT_WRITE, body=TrafficPlan,
          problems=(400, 409, 413, 422)),
    Route("post", "/v1/router/break-glass", "Take all traffic from a rollout's canary", Scope.ROLLOUT_WRITE,
          body=BreakGlass, problems=(400, 413, 422)),
    Route("put", "/v1/upstreams/{name}", "A model server that answers its name for a while", Scope.ADMIN,
          body=NewUpstream, problems=(400, 413, 422)),
    Route("post", "/feedback", "As TensorZero's", Scope.FEEDBACK_UNSIGNED, body=TensorZeroFeedback,
          problems=(400, 413, 422, 503)),
    Route("post", "/api/public/scores", "As Langfuse's", Scope.FEEDBACK_UNSIGNED, body=LangfuseScore,
          problems=(400, 413, 422, 503)),
    Route("get", "/healthz", "The process runs", None),
    Route("get", "/readyz", "A stable model is known, runtime and broker answer", None, problems=()),
)  # fmt: skip


def document() -> dict[str, Any]:
    """Return the document; equal code gives equal documents."""
    bodies = [route.body if isinstance(route.body, tuple) else (route.body,) for route in ROUTES if route.body]
    types = [*chain(*bodies), *(route.answer for route in ROUTES if route.answer), ProblemBody]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hone gateway",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def written() -> str:
    """Return the document as `docs/openapi.json` holds it."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1).decode() + "\n"


def operation(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    """Return one operation; a scope is told in its description, since bearer keys have no scopes of their own."""
    made: dict[str, Any] = {"summary": route.summary, "parameters": parameters(route)}
    if route.scope is not None:
        made["security"] = [{"key": []}]
        made["description"] = f"Needs a key with the scope `{route.scope}`."
    if route.body is not None:
        kinds = route.body if isinstance(route.body, tuple) else (route.body,)
        schema = by_type[kinds[0]] if len(kinds) == 1 else {"anyOf": [by_type[kind] for kind in kinds]}
        content = {"application/json": {"schema": schema}}
        made["requestBody"] = {"required": True, "content": content}
    made["responses"] = responses(route, by_type)
    return made


def responses(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    """Return what the route may answer."""
    schema = by_type[route.answer] if route.answer is not None else {}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.path == "/v1/chat/completions":
        content["text/event-stream"] = {"schema": {}}
    found: dict[str, Any] = {str(route.status): {"description": "Success", "content": content}}
    if route.path == "/readyz":
        found["503"] = {"description": "Not ready", "content": content}
    numbers = {*route.problems, *((401, 403, 408, 429, 503) if route.scope is not None else ())}
    problem = {"application/problem+json": {"schema": {"$ref": REF.format(name="ProblemBody")}}}
    return found | {str(number): {"description": "A problem", "content": problem} for number in sorted(numbers)}


def parameters(route: Route) -> list[dict[str, Any]]:
    """Return the parameters in path and headers."""
    names = [part.split("}")[0] for part in route.path.split("{")[1:]]
    found = [{"name": name, "in": "path", "required": True, "schema": path_schema(name)} for name in names]
    return found + [{"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers]


def path_schema(name: str) -> dict[str, Any]:
    """Return what a part of a path may hold."""
    if name == "rollout_id":
        return {"type": "string", "format": "uuid"}
    if name == "action":
        return {"type": "string", "enum": ["promote", "rollback", "pause", "resume"]}
    return {"type": "string", "minLength": 1}
