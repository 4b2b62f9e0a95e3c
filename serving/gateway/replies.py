"""JSON in and out of the routes that are not hot."""

from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.http import Problem, fault, read_body

MAX_BODY_BYTES = 65_536
Body = TypeVar("Body")


async def body_of(request: Request, shape: type[Body]) -> Body:
    """Return the request's body.

    Raises:
        Problem: 413, 400 or 422.
    """
    body = await read_body(request.receive, MAX_BODY_BYTES)
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid request", f"{error}: correct that field") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "bad JSON", f"the body is not JSON ({error}): send an object") from None


def as_json(document: object, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


async def on_http_error(request: Request, error: Exception) -> Response:
    """Return a path or method that there is not as a problem."""
    assert isinstance(error, HTTPException)
    known = error.headers.get("Allow") if error.headers else None
    remedy = f"send {known}" if known else "see docs/http.md for the routes"
    problem = Problem(error.status_code, error.detail.lower(), f"{request.method} {request.url.path}: {remedy}")
    response = await on_problem(request, problem)
    response.headers.update(error.headers or {})
    return response


async def on_failure(_: Request, error: Exception) -> Response:
    """Return a fault of ours as a problem; the server logs it."""
    return await on_problem(_, fault(error))


async def on_problem(_: Request, problem: Exception) -> Response:
    """Return a problem as it is."""
    assert isinstance(problem, Problem)
    headers = {name.decode(): value.decode() for name, value in problem.headers()}
    return Response(problem.body(), problem.status, headers, "application/problem+json")
