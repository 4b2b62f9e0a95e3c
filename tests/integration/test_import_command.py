"""`hone import`: a dry run stores nothing, bad rows stop it, and the same file makes one dataset."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.store.datasets import get_dataset, read_bodies, rebuild
from hone.store.tables import DatasetRow
from tests.support.cli import Run, audit, make_run, read
from tests.support.training import question

Sessions = sessionmaker[Session]


@pytest.fixture
def run(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return make_run(store_url, monkeypatch, tmp_path)


def write(path: Path, **fields: Any) -> Path:
    rows = [{"instruction": question(n), "output": f"Open page {n}.", **fields} for n in range(20)]
    path.write_text(json.dumps(rows, indent=1))
    return path


def num_datasets(sessions: Sessions) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(DatasetRow)) or 0


def test_a_dry_run_shows_counts_and_a_sample_and_stores_nothing(run: Run, sessions: Sessions, tmp_path: Path) -> None:
    path = write(tmp_path / "alpaca.json")
    found = read(run("import", path, "--label", "cold", "--dry-run", "--json"))
    assert (found["format"], found["kind"], found["rows"], found["stored"]) == ("alpaca", "demonstrations", 20, False)
    assert found["train"] + found["dev"] + found["test"] == 20
    assert found["samples"][0]["completion"].startswith("Open page")
    assert "nothing was stored" in run("import", path, "--label", "cold", "--dry-run").output
    assert num_datasets(sessions) == 0
    assert audit(sessions) == []


def test_it_is_stored_once_and_made_again_from_the_file(run: Run, sessions: Sessions, tmp_path: Path) -> None:
    path = write(tmp_path / "alpaca.json")
    first, second = (read(run("import", path, "--label", "cold", "--json")) for _ in range(2))
    assert first["dataset_id"] == second["dataset_id"]
    assert num_datasets(sessions) == 1
    with sessions() as session:
        row = get_dataset(session, first["dataset_id"])
        assert (row.kind, row.source, row.manifest["format"]) == ("demonstrations", "cold", "alpaca")
        bodies = [body for split in ("train", "dev", "test") for body in read_bodies(session, row.dataset_id, split)]
        assert rebuild(session, row.dataset_id, file=path) == bodies
    assert "hone train sft --dataset" in run("import", path, "--label", "cold").output


def test_bad_rows_stop_it_unless_they_are_to_be_skipped(run: Run, sessions: Sessions, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": question(n), "completion": "Yes."}) for n in range(10)]
    path.write_text("\n".join([*rows[:3], "{oops", *rows[3:]]))
    assert "line 4: it is not JSON" in run("import", path, "--label", "cold", code=1).stderr
    assert "--skip-bad" in run("import", path, "--label", "cold", "--dry-run", code=1).stderr
    assert num_datasets(sessions) == 0
    found = read(run("import", path, "--label", "cold", "--skip-bad", "--json"))
    assert (found["rows"], found["bad_rows"]) == (10, 1)
    assert num_datasets(sessions) == 1


def test_what_is_not_permissive_is_counted_and_left_out(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "alpaca.json")
    told = run("import", path, "--label", "cold", "--license", "CC-BY-NC-4.0", code=1).stderr
    assert "license 20" in told
    held = write(tmp_path / "held.json", eval_only=True)
    assert "eval_only 20" in run("import", held, "--label", "cold", code=1).stderr
    assert read(run("import", held, "--label", "cold", "--dry-run", "--json"))["left_out"] == {"eval_only": 20}
