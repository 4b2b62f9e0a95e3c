"""Recorded conversations through the real gateway, ingest and pair worker, all as processes on a real broker."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from hone.datasets import FreezePolicy
from hone.local.processes import Supervisor
from hone.local.stack import Place, Ports, hone_programs, program_environment, start_topics
from hone.records import TRAINABLE_LICENSES
from hone.store.datasets import freeze_feedback
from hone.store.tables import (
    DatasetItemRow,
    DeadLetterRow,
    FeedbackEventRow,
    PreferencePairRow,
    ResponseRow,
)

ROOT = Path(__file__).parents[2]
RECORDED = ROOT.parent / "shared" / "data" / "conversations.jsonl.gz"
NEEDED = ("gateway", "ingest", "pairs")
LIMIT = 300

pytestmark = [pytest.mark.shared, pytest.mark.slow]

Sessions = sessionmaker[Session]
Replay = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def environment(store_url: str, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """The variables of a running gateway, ingest and pair worker; which broker it is, the supervisor chooses."""
    place = Place(root=ROOT, data=tmp_path / "data", libs=ROOT / "var" / "kafka" / "libs", ports=Ports.free())
    config = tmp_path / "hone.toml"
    config.write_text("")
    with Supervisor(tmp_path / "stack.json") as supervisor:
        broker = start_topics(supervisor, place, None, detached=False)
        env = program_environment(place, store_url, broker, mode="observe", config=config)
        programs = [program for program in hone_programs(place, env, {}) if program.name in NEEDED]
        supervisor.start_together(programs)
        yield env


@pytest.fixture
def replay(environment: Mapping[str, str], tmp_path: Path) -> Replay:
    """`replay(file, *options)` runs the command as a person would and returns exit code and account."""

    def run(file: Path, *options: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "hone.cli", "replay", str(file), "--json", *options],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


def counts(sessions: Sessions) -> list[int]:
    tables = (ResponseRow, FeedbackEventRow, PreferencePairRow, DeadLetterRow)
    with sessions() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def licenses_of_file() -> dict[tuple[str, str], set[tuple[str, bool]]]:
    """Question and answer -> licences; a few texts stand in two rows."""
    found: dict[tuple[str, str], set[tuple[str, bool]]] = {}
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for answer in row["responses"]:
                key = row["prompt"][-1]["content"], answer["text"]
                found.setdefault(key, set()).add((row["license"], bool(row.get("eval_only"))))
    return found


def test_every_event_is_accounted_for_and_only_permissive_rows_are_trained_on(
    replay: Replay, sessions: Sessions
) -> None:
    code, first = replay(RECORDED, "--limit", "100")
    assert (code, first["differences"], first["num_played"]) == (0, [], 100)
    code, rest = replay(RECORDED, "--limit", str(LIMIT))
    assert (code, rest["differences"]) == (0, [])
    assert (rest["num_before"], rest["num_played"]) == (100, LIMIT - 100), "a run goes on where one before has ended"
    assert rest["num_answers"] == rest["num_answers_stored"] > LIMIT - 100
    assert rest["events_sent"] == rest["events_stored"]
    assert set(rest["events_sent"]) == set(rest["pairs"]) == {"thumbs", "regenerate", "choice"}
    stored = counts(sessions)
    assert stored[0] == first["num_answers"] + rest["num_answers"]
    assert stored[1] == sum(first["events_sent"].values()) + sum(rest["events_sent"].values())
    with sessions.begin() as session:
        check_rows_carry_their_licence(session)
        check_frozen_rows(session)

    code, again = replay(RECORDED, "--limit", str(LIMIT))
    assert (code, again["num_before"], again["num_played"]) == (0, LIMIT, 0)
    assert again["pairs"] == rest["pairs"]
    assert counts(sessions) == stored, "a second run adds nothing"


def check_rows_carry_their_licence(session: Session) -> None:
    """Each stored answer has the licence of its row in the file, and stays outside of rollouts."""
    wanted, found = licenses_of_file(), Counter[tuple[str | None, bool]]()
    for row in session.scalars(select(ResponseRow)):
        assert (row.license, row.eval_only) in wanted[row.messages[-1]["content"], row.completion]
        assert (row.track, row.rollout_id, row.model_version) == ("replay", None, "recorded")
        found[row.license, row.eval_only] += 1
    assert {license in TRAINABLE_LICENSES for license, _ in found} == {True, False}
    assert {eval_only for _, eval_only in found} == {True, False}


def check_frozen_rows(session: Session) -> None:
    """A dataset of all pairs holds none whose answers may not be trained on, though there are such pairs."""
    chosen = ResponseRow.response_id == PreferencePairRow.chosen_id
    all_pairs = select(ResponseRow.license, ResponseRow.eval_only).join(PreferencePairRow, chosen)
    before = {tuple(row) for row in session.execute(all_pairs)}
    assert any(license not in TRAINABLE_LICENSES for license, _ in before)
    assert any(eval_only for _, eval_only in before)
    dataset = freeze_feedback(session, watermark=None, policy=FreezePolicy(max_user_share=0.5))
    in_dataset = select(func.unnest(DatasetItemRow.event_ids)).where(DatasetItemRow.dataset_id == dataset)
    rows = session.execute(
        select(ResponseRow.license, ResponseRow.eval_only)
        .join(FeedbackEventRow, FeedbackEventRow.response_id == ResponseRow.response_id)
        .where(FeedbackEventRow.event_id.in_(in_dataset))
    ).all()
    assert len(rows) > 20
    assert all(license in TRAINABLE_LICENSES and not eval_only for license, eval_only in rows)
