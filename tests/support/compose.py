"""docker-compose.yml read as docker compose reads it, and its words turned into this machine's: no engine needed."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
OURS = re.compile("^hone-")


def document() -> dict[str, Any]:
    loaded = yaml.safe_load(FILE.read_text())
    assert isinstance(loaded, dict)
    return loaded


def variables(node: Any) -> list[tuple[str, str, str]]:
    """Every variable of the text: name, `?`, `-` or nothing, and what follows."""
    return VARIABLE.findall(yaml.safe_dump(node, width=10_000))


def interpolated(node: Any, values: Mapping[str, str]) -> Any:
    """The node with its variables replaced; raises KeyError for one that is required and missing."""
    if isinstance(node, dict):
        return {key: interpolated(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolated(value, values) for value in node]
    return VARIABLE.sub(lambda m: value_of(m, values), node) if isinstance(node, str) else node


def value_of(match: re.Match[str], values: Mapping[str, str]) -> str:
    name, operator, rest = match.groups()
    if values.get(name):
        return values[name]
    if operator == "-":
        return str(rest)
    raise KeyError(name)


def services() -> dict[str, dict[str, Any]]:
    found = document()["services"]
    assert isinstance(found, dict)
    return found


def our_services() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services().items() if OURS.match(service["image"])}


class Here:
    """A container's words in this machine's words: paths, interpreter, host names and ports."""

    def __init__(self, home: Path, ports: Mapping[int, int], broker: str, database_url: str) -> None:
        self.home, self.ports, self.broker, self.database_url = home, ports, broker, database_url

    def word(self, text: str) -> str:
        text = re.sub(r"postgresql\+psycopg2://\S+@postgres/hone", lambda _: self.database_url, text)
        text = (
            text.replace("kafka:9092", self.broker)
            .replace("/app/", f"{ROOT}/")
            .replace("/var/lib/hone", str(self.home))
        )
        text = re.sub(r"//(gateway|runtime):", "//127.0.0.1:", text).replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"(?<![\w.])87\d\d(?!\w)", lambda match: str(self.ports.get(int(match[0]), match[0])), text)

    def command(self, words: list[str]) -> list[str]:
        return [sys.executable if word == "python" else self.word(word) for word in words]

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        return {name: self.word(str(value)) for name, value in values.items()}
