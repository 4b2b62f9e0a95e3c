"""The cluster over HTTP: its API, the arms' own Services, and Seldon's ingress for callers who name no arm."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.cluster.api import PATH, Cluster
from examples.cluster.live import Running
from examples.cluster.rules import V1
from examples.cluster.spoken import as_rows, spoken

ARM_TIMEOUT_S = 120.0
WATCH_POLL_S = 0.05


class ClusterApp:
    """Routes over a cluster whose arms are real."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client: httpx.AsyncClient

    def routes(self) -> list[Route]:
        """Return the routes."""
        verbs = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return [
            Route("/healthz", self.healthz),
            Route("/spoken", self.spoken),
            Route("/apis/{rest:path}", self.api, methods=verbs),
            Route("/api/v1/query", self.api),
            Route("/services/{service}/{rest:path}", self.service, methods=verbs),
            Route("/seldon/{namespace}/{name}/api/v1.0/predictions", self.ingress_v1, methods=["POST"]),
            Route("/v2/models/{model}/{rest:path}", self.ingress_v2, methods=["GET", "POST"]),
        ]

    async def healthz(self, _: Request) -> Response:
        """The process runs."""
        return JSONResponse({"status": "ok"})

    async def spoken(self, _: Request) -> Response:
        """What the arms said so far, and from which weights; no part of Kubernetes."""
        return JSONResponse(as_rows(self.cluster.spoken))

    async def api(self, request: Request) -> Response:
        """The Kubernetes API, and the one query of Prometheus."""
        params, kind = dict(request.query_params), request.headers.get("content-type", "")
        if params.get("watch") in ("1", "true"):
            return self._watch(request.url.path, params)
        body = await request.body()
        code, document = await asyncio.to_thread(
            self.cluster.handle, request.method, request.url.path, params, kind, body
        )
        return JSONResponse(document, code)

    def _watch(self, path: str, params: dict[str, str]) -> Response:
        found = PATH.fullmatch(path)
        assert found is not None
        plural, since = found[4], int(params.get("resourceVersion") or self.cluster.store.last)

        async def events() -> AsyncIterator[bytes]:
            seen, left_s = since, float(params.get("timeoutSeconds", 30))
            while left_s > 0:
                for number, what, manifest in await asyncio.to_thread(self.cluster.watch, plural, seen):
                    seen = number
                    yield json.dumps({"type": what, "object": manifest}).encode() + b"\n"
                await asyncio.sleep(WATCH_POLL_S)
                left_s -= WATCH_POLL_S

        return StreamingResponse(events(), media_type="application/json")

    async def service(self, request: Request) -> Response:
        """One predictor's own Service (v1)."""
        arm = service_arm(self.cluster, request.path_params["service"])
        return await self._forward(request, arm, request.path_params["rest"], keyed=True)

    async def ingress_v1(self, request: Request) -> Response:
        """A caller who names the deployment: drawn by its split."""
        arm = self.cluster.draw(request.path_params["name"], request.path_params["namespace"])
        return await self._forward(request, arm, "api/v1.0/predictions", keyed=False)

    async def ingress_v2(self, request: Request) -> Response:
        """A caller who names a model, or an experiment in the header."""
        model = request.headers.get("seldon-model", request.path_params["model"])
        experiment = model.removesuffix(".experiment")
        arm = self.cluster.draw(experiment) if experiment != model else self.cluster.endpoint_of(model)
        rest = f"v2/models/{arm}/{request.path_params['rest']}"
        return await self._forward(request, arm, rest, keyed=experiment == model)

    async def _forward(self, request: Request, arm: str | None, path: str, *, keyed: bool) -> Response:
        running: dict[str, Running] = getattr(self.cluster.arms, "running", {})
        found = running.get(arm) if arm is not None and self.cluster.arms.is_ready(arm) else None
        if found is None:
            return JSONResponse({"error": f"{arm} does not answer"}, 503)
        url, body = f"{found.url}/{path}", await request.body()
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        try:
            answer = await self.client.request(request.method, url, content=body, headers=headers)
        except httpx.TransportError as error:
            return JSONResponse({"error": repr(error)}, 503)
        if request.method == "POST" and answer.is_success:
            version = found.arm.version  # the arm may have been taken out while it answered
            self.cluster.requests[version, keyed] += 1
            if said := spoken(version, answer.content):
                self.cluster.spoken[said] += 1
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


def service_arm(cluster: Cluster, service: str) -> str | None:
    """Return the arm behind a Service that a predictor asked for by annotation."""
    for deployment in list(cluster.store.all(V1)):
        for predictor in deployment["spec"]["predictors"]:
            if (predictor.get("annotations") or {}).get("seldon.io/svc-name") == service:
                return f"{deployment['metadata']['name']}-{predictor['name']}"
    return None


def cluster_app(cluster: Cluster) -> Any:
    """Return the ASGI application."""
    served = ClusterApp(cluster)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=ARM_TIMEOUT_S, limits=limits, trust_env=False) as client:
            served.client = client
            yield

    return Starlette(routes=served.routes(), lifespan=lifespan)
