"""The model runtime as an ASGI application: several versions in one process, answered by name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hone import metrics
from hone.errors import ConfigError
from hone.weights import weights_digest
from serving.http import Problem, Receive, Scope, Send
from serving.runtime.batcher import Batcher
from serving.runtime.chat import Chat
from serving.runtime.model import LoadedModel, load_model

Body = Annotated[list[str], msgspec.Meta(min_length=1, max_length=64)]


class LoadRequest(msgspec.Struct):
    """`POST /v1/models/load`."""

    model_version: str
    directory: str


class ScoredItem(msgspec.Struct):
    """A conversation and the answer to score."""

    messages: list[dict[str, Any]]
    completion: str


class ScoreRequest(msgspec.Struct):
    """`POST /v1/score`."""

    model: str
    items: Annotated[list[ScoredItem], msgspec.Meta(min_length=1, max_length=64)]


class EmbedRequest(msgspec.Struct):
    """`POST /v1/embed`."""

    model: str
    texts: Body


class Runtime:
    """The models loaded, and the routes over them."""

    def __init__(self, models: Mapping[str, LoadedModel]) -> None:
        self.models = dict(models)
        self.batcher = Batcher()
        self.chat = Chat(self.models, self.batcher)
        self._loading = asyncio.Lock()
        metrics.RUNTIME_MODELS.set_function(lambda: len(self.models))

    async def list_models(self, _: Request) -> Response:
        """GET /v1/models: each version with the digest of its weights."""
        return as_json({"object": "list", "data": [describe(model) for model in self.models.values()]})

    async def load(self, request: Request) -> Response:
        """POST /v1/models/load: 200 once the version answers. The same version again must be the same weights."""
        asked = msgspec.json.decode(await request.body(), type=LoadRequest)
        version, directory = asked.model_version, Path(asked.directory)
        async with self._loading:
            if version not in self.models:
                self.models[version] = await asyncio.to_thread(load_model, version, directory)
            elif (found := await asyncio.to_thread(weights_digest, directory)) != self.models[version].digest:
                detail = f"model {version} has digest {self.models[version].digest}, {directory} has {found}: rename it"
                raise Problem(409, "other weights", detail)
            return as_json(describe(self.models[version]))

    async def unload(self, request: Request) -> Response:
        """DELETE /v1/models/{version}: rows in a batch end first; 404 where it is not loaded."""
        self._model(request.path_params["version"])
        del self.models[request.path_params["version"]]
        return Response(status_code=204)

    async def score(self, request: Request) -> Response:
        """POST /v1/score: a reward model's rewards, or a chat model's mean log-probabilities."""
        asked = msgspec.json.decode(await request.body(), type=ScoreRequest)
        model, items = self._model(asked.model), [(item.messages, item.completion) for item in asked.items]
        scores = await self.batcher.compute(lambda: model.score(items))
        return as_json({"model": asked.model, "kind": "reward" if model.is_reward else "logprob", "scores": scores})

    async def embed(self, request: Request) -> Response:
        """POST /v1/embed: the mean hidden state of each text."""
        asked = msgspec.json.decode(await request.body(), type=EmbedRequest)
        model = self._model(asked.model)
        return as_json(
            {"model": asked.model, "embeddings": await self.batcher.compute(lambda: model.embed(asked.texts))}
        )

    async def healthz(self, _: Request) -> Response:
        """GET /healthz: the process runs."""
        return as_json({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """GET /readyz: at least one model is loaded."""
        return as_json({"models": sorted(self.models)}, 200 if self.models else 503)

    def _model(self, version: str) -> LoadedModel:
        if version not in self.models:
            known = ", ".join(self.models) or "none"
            raise Problem(404, "model not found", f"model {version!r} is not loaded; loaded: {known}")
        return self.models[version]


def runtime_app(models: Mapping[str, LoadedModel]) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the ASGI application that serves these models, and later ones loaded over HTTP."""
    runtime = Runtime(models)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(runtime.batcher.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    routes = [
        Route("/v1/models", runtime.list_models, methods=["GET"]),
        Route("/v1/models/load", runtime.load, methods=["POST"]),
        Route("/v1/models/{version}", runtime.unload, methods=["DELETE"]),
        Route("/v1/score", runtime.score, methods=["POST"]),
        Route("/v1/embed", runtime.embed, methods=["POST"]),
        Route("/healthz", runtime.healthz),
        Route("/readyz", runtime.readyz),
        Route("/metrics", metrics_page),
    ]
    handlers: Any = {Problem: on_problem, ConfigError: on_config_error, msgspec.DecodeError: on_bad_body}
    cold = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_chat = scope["type"] == "http" and scope["path"] == "/v1/chat/completions" and scope["method"] == "POST"
        await (runtime.chat if is_chat else cold)(scope, receive, send)

    return app


def describe(model: LoadedModel) -> dict[str, Any]:
    """Return a model in the shape of OpenAI's list, with its digest."""
    return {
        "id": model.version,
        "object": "model",
        "owned_by": "hone",
        "digest": model.digest,
        "directory": str(model.directory),
        "kind": "reward" if model.is_reward else "chat",
    }


def as_json(document: object, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


async def metrics_page(_: Request) -> Response:
    """GET /metrics."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def on_problem(_: Request, problem: Problem) -> Response:
    """Return a problem as it is."""
    return Response(problem.body(), problem.status, dict(), "application/problem+json")


async def on_config_error(_: Request, error: ConfigError) -> Response:
    """A directory that cannot be loaded is the caller's mistake."""
    return await on_problem(_, Problem(422, "not loadable", str(error)))


async def on_bad_body(_: Request, error: msgspec.DecodeError) -> Response:
    """Bodies of wrong shape."""
    return await on_problem(_, Problem(422, "invalid request", str(error)))
