"""The module for browsers and its demo page, at addresses that stay."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": POLICY}


def browser_routes() -> list[BaseRoute]:
    """Return `GET /browser/hone.js` and the demo page `/browser/demo.html` with what belongs to it."""
    names = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)
    return [Route(f"/browser/{name}", static_file, name=name) for name in names]


async def static_file(request: Request) -> Response:
    """Answer with a file. Pages of any origin may import the module: it holds nothing but code."""
    path = FOLDER / request.url.path.rpartition("/")[2]
    open_to_all = {"Access-Control-Allow-Origin": "*"} if path.suffix == ".js" else {}
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS | open_to_all)
