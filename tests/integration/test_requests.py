"""One crossing of the threshold makes one request, and one run gets it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import Conflict
from hone.ids import uuid7
from hone.records import Track
from hone.settings import Pairs, Settings
from hone.store import requests
from hone.store.events import mark_dirty, store_events
from hone.store.models import register_model, set_alias
from hone.store.overview import trigger_view
from hone.store.pairs import begin_pair_transaction
from hone.store.requests import claim_request, count_new_labels, count_new_pairs, finish_request, open_request
from hone.store.switches import FREEZE, set_switch
from hone.store.tables import ErasureRow, PreferencePairRow, RetrainRequestRow, UnaryLabelRow
from ingest.pair_worker import derive_batch, open_at_threshold
from tests.support.events import feedback, response, uid

Sessions = sessionmaker[Session]
NOW = datetime(2026, 1, 6, tzinfo=UTC)
ACTIVE = Settings(mode="active", trigger={"min_pairs": 2, "max_user_pairs": 50})
OBSERVE = Settings(mode="observe", trigger={"min_pairs": 2})


def add_pairs(sessions: Sessions, number: int, *, user: str | None = None, **fields: object) -> None:
    """Store as many choices, each of a turn and, unless `user` is given, a person of its own."""
    with sessions.begin() as session:
        for _ in range(number):
            name = uuid4().hex
            who = user or name
            shared = {"turn": name, "idempotency_key": uid(name), "user": who, **fields}
            stored = store_events(
                session,
                [response(name + "a", **shared), response(name + "b", **shared)],  # type: ignore[arg-type]
                [
                    feedback("choice", name + "a", user=who, rejected=(uid(name + "b"),)),
                    feedback("thumbs", name + "a", user=who, value=1),
                ],
            )
            mark_dirty(session, stored.touched)
    with sessions.begin() as session:
        derive_batch(session, Pairs(batch_turns=10_000))


def test_excluded_pairs_do_not_count_towards_the_threshold(sessions: Sessions) -> None:
    with sessions.begin() as session:
        base = register_model(session, digest="1" * 64, directory=Path("/base"), status="imported")
        set_alias(session, "stable", base, expected_generation=None)
    add_pairs(sessions, 3, model_version=base)
    add_pairs(sessions, 4, model_version="somebody's API")
    for action, number in (("weight", 7), ("exclude", 3)):
        trigger = ACTIVE.trigger.model_copy(update={"off_policy": action})
        with sessions() as session:
            seen = trigger_view(session, ACTIVE.model_copy(update={"trigger": trigger}), datetime.now(UTC))
        assert seen.num_pairs == number


def look(sessions: Sessions, settings: Settings = ACTIVE) -> bool:
    """What the worker does at each look; True if a request was opened or was open already."""
    with sessions.begin() as session:
        seen = trigger_view(session, settings, datetime.now(UTC))
        if seen.opens:
            open_at_threshold(session, "dpo", seen)
        return seen.opens


def claim(sessions: Sessions, run: str, mode: str = "active") -> RetrainRequestRow | None:
    with sessions.begin() as session:
        return claim_request(session, run, NOW, mode=mode)


def statuses(sessions: Sessions) -> list[str]:
    with sessions() as session:
        return [row.status for row in requests.list_requests(session)]


def num_new(sessions: Sessions) -> int:
    with sessions() as session:
        return count_new_pairs(session, datetime.now(UTC)).num_pairs


def test_looking_often_at_one_crossing_opens_one_request(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    assert [look(sessions) for _ in range(3)] == [True, True, True]
    add_pairs(sessions, 2)
    assert look(sessions)
    assert statuses(sessions) == ["open"]


def test_below_the_threshold_and_in_observe_mode_nothing_is_opened(sessions: Sessions) -> None:
    add_pairs(sessions, 1)
    assert not look(sessions)
    add_pairs(sessions, 1)
    assert not look(sessions, OBSERVE)
    assert statuses(sessions) == []


def test_a_claim_uses_up_the_pairs_and_the_next_crossing_makes_another_request(sessions: Sessions) -> None:
    add_pairs(sessions, 3)
    look(sessions)
    first = claim(sessions, "run-1")
    assert first is not None
    assert num_new(sessions) == 0
    assert not look(sessions)
    add_pairs(sessions, 2)
    assert look(sessions)
    second = claim(sessions, "run-2")
    assert second is not None
    assert first.watermark is not None
    assert second.watermark is not None
    assert second.watermark > first.watermark
    assert sorted(statuses(sessions)) == ["claimed", "claimed"]


def test_the_watermark_covers_exactly_the_pairs_of_the_claim(sessions: Sessions) -> None:
    add_pairs(sessions, 3)
    look(sessions)
    request = claim(sessions, "run")
    with sessions() as session:
        revisions = list(session.scalars(select(PreferencePairRow.rev))) + list(
            session.scalars(select(UnaryLabelRow.rev))
        )
    assert request is not None
    assert request.watermark == max(revisions)


def test_a_run_that_claims_again_gets_the_same_request(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    first, again, other = claim(sessions, "run"), claim(sessions, "run"), claim(sessions, "other")
    assert first is not None
    assert again is not None
    assert (again.request_id, again.watermark) == (first.request_id, first.watermark)
    assert other is None


def test_of_many_runs_one_gets_the_request(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    got: list[RetrainRequestRow | None] = []
    threads = [Thread(target=lambda n=n: got.append(claim(sessions, f"run-{n}"))) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row is not None for row in got].count(True) == 1
    assert len(got) == 5


def test_a_frozen_platform_claims_and_opens_nothing(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    with sessions.begin() as session:
        set_switch(session, FREEZE, True, actor="ann", reason="test", now=NOW)
    assert claim(sessions, "run") is None
    assert not look(sessions)
    with sessions.begin() as session:
        set_switch(session, FREEZE, False, actor="ann", reason="test", now=NOW)
    assert claim(sessions, "run") is not None


def test_in_observe_mode_only_a_persons_request_is_claimed(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    assert claim(sessions, "run", "observe") is None
    with sessions.begin() as session:
        open_request(session, crossing=f"{requests.MANUAL}{uuid7()}", reason="by hand", method="dpo")
    request = claim(sessions, "run", "observe")
    assert request is not None
    assert request.reason == "by hand"


def test_a_failed_run_does_not_start_again_until_the_next_crossing(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    request = claim(sessions, "run")
    assert request is not None
    with sessions.begin() as session:
        finish_request(session, request.request_id, "failed", "out of memory", NOW)
    assert not look(sessions)
    add_pairs(sessions, 2)
    assert look(sessions)
    assert sorted(statuses(sessions)) == ["failed", "open"]


def test_a_request_that_was_cancelled_before_its_claim_does_not_open_again_at_once(sessions: Sessions) -> None:
    add_pairs(sessions, 2)
    look(sessions)
    with sessions.begin() as session:
        (request,) = requests.list_requests(session)
        finish_request(session, request.request_id, "cancelled", "not now", NOW)
    assert not look(sessions)
    add_pairs(sessions, 2)
    assert look(sessions)


def test_an_ended_request_keeps_its_end(sessions: Sessions) -> None:
    with sessions.begin() as session:
        request, _ = open_request(session, crossing="manual:1", reason="r", method="dpo")
        finish_request(session, request.request_id, "done", None, NOW)
        finish_request(session, request.request_id, "done", None, NOW + timedelta(1))
        assert request.finished_at == NOW
        with pytest.raises(Conflict, match="is done already"):
            finish_request(session, request.request_id, "failed", None, NOW)
        with pytest.raises(ValueError, match="'open'"):
            finish_request(session, request.request_id, "open", None, NOW)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"license": "CC-BY-NC-4.0"}, id="under a licence that is not permissive"),
        pytest.param({"eval_only": True}, id="kept for evaluation"),
        pytest.param({"track": Track.SHADOW}, id="that nobody saw"),
        pytest.param({"finish_reason": "length"}, id="cut off"),
        pytest.param({"finish_reason": "content_filter"}, id="withheld by the response hook"),
    ],
)
def test_answers_that_may_not_be_trained_on_do_not_count(sessions: Sessions, fields: dict[str, object]) -> None:
    add_pairs(sessions, 2, **fields)
    assert num_new(sessions) == 0
    add_pairs(sessions, 1, license="Apache-2.0")
    assert num_new(sessions) == 1


def test_one_person_counts_up_to_the_cap_and_an_erased_person_not_at_all(sessions: Sessions) -> None:
    add_pairs(sessions, 5, user="ann")
    add_pairs(sessions, 2, user="bob")
    with sessions.begin() as session:
        now = datetime.now(UTC)
        assert count_new_pairs(session, now).num_pairs == 7
        assert count_new_pairs(session, now, max_user_pairs=3).num_pairs == 5
        assert count_new_labels(session, now, max_user_pairs=3).num_pairs == 5
        session.add(ErasureRow(user_id=uid("ann"), counts={}))
        session.flush()
        assert count_new_pairs(session, now).num_pairs == 2


def test_the_recent_pairs_give_an_estimate(sessions: Sessions) -> None:
    add_pairs(sessions, 4)
    with sessions() as session:
        counts = count_new_pairs(session, datetime.now(UTC) + timedelta(minutes=10))
        assert counts.num_recent == 4
        assert 590 < counts.recent_s < 700
        later = count_new_pairs(session, datetime.now(UTC) + timedelta(hours=3))
        assert (later.num_recent, later.recent_s) == (0, 3600)


def test_a_watermark_is_not_drawn_while_pairs_below_it_are_being_written(sessions: Sessions) -> None:
    """A revision drawn early and committed late would lie under the watermark and belong to no dataset."""
    add_pairs(sessions, 2)
    look(sessions)
    claimed: list[RetrainRequestRow | None] = []
    with sessions() as writing:
        writing.begin()
        begin_pair_transaction(writing)
        thread = Thread(target=lambda: claimed.append(claim(sessions, "run")))
        thread.start()
        thread.join(0.5)
        assert claimed == []
        writing.commit()
    thread.join(10)
    assert [row is not None for row in claimed] == [True]
