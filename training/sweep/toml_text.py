"""Values as TOML, for specs that people read and run."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(values: Mapping[str, Any]) -> str:
    """Return the TOML of plain values and tables in tables; None is left out. `tomllib` reads the same back."""
    return "\n".join(lines(values, ())) + "\n"


def lines(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield a table's own keys, then its tables."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    own = {key: value for key, value in values.items() if key not in tables and value is not None}
    if path and (own or not tables):
        yield from ("", f"[{'.'.join(map(quoted, path))}]")
    for key, value in own.items():
        # JSON's texts, numbers, truth values and lists are TOML's too.
        yield f"{quoted(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, table in tables.items():
        yield from lines(table, (*path, key))


def quoted(key: str) -> str:
    """Return a key as TOML takes it."""
    return key if BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)
