"""`--set a.b=1` on a command line, as the nested tables of a TOML file."""

import tomllib
from collections.abc import Iterable
from typing import Any

from hone.errors import ConfigError


def read_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Return `a.b=1` items as nested tables; values are TOML, and what is not TOML is a text.

    Raises:
        ConfigError: an item has no key or value, or a key is both a value and a table.
    """
    spec: dict[str, Any] = {}
    for item in items:
        key, found, value = item.partition("=")
        *tables, name = key.strip().split(".")
        if not found or not all([*tables, name]):
            raise ConfigError(f"--set {item!r} is not KEY=VALUE: write for instance --set lora.rank=8")
        place = spec
        for part in tables:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {item!r}: {part} is set to a value already, so it has no keys")
        place[name] = read_value(value.strip())
    return spec


def read_value(text: str) -> Any:
    """Return the TOML value, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
