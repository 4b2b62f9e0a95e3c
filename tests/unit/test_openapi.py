"""The committed OpenAPI document says what the code does."""

from pathlib import Path

import msgspec
from starlette.routing import Route as Served

from hone.tokens import parse_keys
from serving.gateway.compat import CompatRoutes
from serving.gateway.openapi import ROUTES, document, written
from serving.gateway.stored import StoredRoutes
from serving.gateway.traffic import TrafficRoutes

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_file_is_what_the_code_gives() -> None:
    assert FILE.read_text() == written(), "run `python -m serving openapi > docs/openapi.json`"


def test_every_route_of_the_gateway_is_in_it() -> None:
    held = [
        *StoredRoutes(None, None, b"", parse_keys(f"1:{'ab' * 32}")).routes(),  # type: ignore[arg-type]
        *TrafficRoutes.routes(object.__new__(TrafficRoutes)),
        *CompatRoutes(None, None).routes(),  # type: ignore[arg-type]
    ]
    served = {
        (method.lower(), route.path.replace(":uuid", ""))
        for route in held
        if isinstance(route, Served)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert served <= {(route.method, route.path) for route in ROUTES}


def test_every_reference_leads_somewhere() -> None:
    said = document()
    text = msgspec.json.encode(said).decode()
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= said["components"]["schemas"].keys()
    assert "ActBody" in names
