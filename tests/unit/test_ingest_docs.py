"""The pages about ingest and pairs say what the code does."""

from pathlib import Path

import pytest

from hone import metrics
from hone.settings import Pairs
from ingest.pairing import MAX_SIBLINGS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(Pairs.model_fields))
def test_every_setting_of_pairs_is_documented_with_its_default(name: str) -> None:
    assert f"| `{name}` | {Pairs.model_fields[name].default} |" in (DOCS / "pairs.md").read_text()


def test_the_limit_of_siblings_is_documented() -> None:
    assert MAX_SIBLINGS == 8
    assert "first\n  eight" in (DOCS / "pairs.md").read_text()


def test_every_metric_of_ingest_is_documented() -> None:
    page = (DOCS / "ingest.md").read_text()
    prefixes = ("INGEST_", "PAIRS_", "LABELS_", "DIRTY_", "ORPHAN_", "NEW_PAIRS", "MIN_PAIRS", "RETRAIN_REQUESTS")
    ours = {metric for name, metric in vars(metrics).items() if name.startswith(prefixes)}
    assert len(ours) == 19
    names = {family.name for metric in ours for family in metric.describe()}
    assert [name for name in sorted(names) if name not in page] == []
