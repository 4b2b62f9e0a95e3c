"""PromQL taken apart: which metrics an expression reads, and with which labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
RULE_FILES = sorted((ROOT / "monitoring" / "prometheus" / "rules").glob("*.yml"))


@dataclass(frozen=True)
class Selector:
    """One metric of an expression, with the values that each label may have by `=` or an alternation in `=~`."""

    metric: str
    labels: tuple[tuple[str, frozenset[str]], ...]
    text: str

    def values(self, label: str) -> frozenset[str]:
        return dict(self.labels).get(label, frozenset())


def selectors(expr: str) -> list[Selector]:
    """The selectors of an expression; raises ValueError where it is no PromQL."""
    found: list[Selector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            labels = tuple((m.name, frozenset(m.value.split("|"))) for m in matchers if symbol(m.op) in ("=", "=~"))
            inner = ", ".join(f'{m.name}{symbol(m.op)}"{m.value}"' for m in matchers)
            found.append(Selector(node.name, labels, f"{node.name}{{{inner}}}"))

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def symbol(op: Any) -> str:
    return {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}[str(op).rsplit(".", 1)[-1]]


def rules() -> list[dict[str, Any]]:
    """Every rule of every file."""
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def without_variables(expr: str) -> str:
    """The expression as Grafana would send it for a short stretch of time."""
    return expr.replace("$__rate_interval", "1m")
