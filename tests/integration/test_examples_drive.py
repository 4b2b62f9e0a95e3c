"""Simulated users against the real gateway and runtime: what they count as sent is what the broker holds."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.support.drive import DriveFailed, Sent, Target, ask_all, collect, keep_rating
from examples.support.taste import GUIDED
from examples.support.users import make_users
from hone.records import FEEDBACK_TOPIC, Feedback
from serving.runtime.app import runtime_app
from serving.runtime.model import load_model
from tests.support.gateway import KEY, Served, gateway, records
from tests.support.tiny_model import make_tiny_model
from tests.support.web import serving


@pytest.fixture(scope="module")
def runtime_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.set_num_threads(1)
    model = load_model("m-old", make_tiny_model(tmp_path_factory.mktemp("model")))
    with serving(runtime_app({"m-old": model})) as url:
        yield url


@pytest.fixture
def served(runtime_url: str, tmp_path: Path) -> Iterator[Served]:
    with gateway(tmp_path, runtime_url) as running:
        yield running


def target(served: Served) -> Target:
    return Target(served.url, api_key=KEY, max_tokens=24)


def test_every_event_counted_as_sent_is_on_the_broker_once_but_for_the_resent_ones(served: Served) -> None:
    sent = collect(target(served), make_users(12, GUIDED, seed=3, questions_each=8), seed=3)
    assert sent.num_turns == 96
    assert sent.events_sent > 96
    assert set(sent.events) >= {"thumbs", "edit", "regenerate", "choice", "outcome"}
    delivered = records(served.bootstrap, FEEDBACK_TOPIC, Feedback, sent.events_sent + sent.num_resent)
    distinct = {event.event_id: event for event in delivered}
    assert Counter(event.kind.value for event in distinct.values()) == sent.events
    assert len(served.responses(sent.num_answers)) == sent.num_answers


def test_an_answer_asked_for_again_belongs_to_the_same_turn(served: Served) -> None:
    sent = collect(target(served), make_users(6, GUIDED, seed=4, questions_each=4), seed=4)
    turns = Counter(response.turn_id for response in served.responses(sent.num_answers))
    assert set(turns.values()) == {1, 2}
    assert len(turns) == sent.num_turns == 24


def test_a_rollouts_visitors_ask_once_each_until_they_are_told_to_stop(served: Served) -> None:
    seen: list[int] = []
    sent = keep_rating(
        target(served), GUIDED, until=lambda: len(seen) >= 40, on_progress=lambda sent: seen.append(sent.num_turns)
    )
    assert 40 <= sent.num_turns <= 40 + 16
    assert set(sent.events) == {"thumbs"}
    assert sent.thumbs_up + sent.thumbs_down == sent.events_sent
    assert len({response.user_id for response in served.responses(sent.num_answers)}) == sent.num_turns


def test_traffic_keeps_to_its_rate(served: Served) -> None:
    started = time.monotonic()
    collect(target(served), make_users(5, GUIDED, seed=0, questions_each=4), max_turns_per_s=40)
    assert time.monotonic() - started >= 19 / 40


def test_questions_of_the_hidden_evaluation_are_answered_in_order_and_rated_by_nobody(served: Served) -> None:
    assert len(ask_all(target(served), ["How do I share my order?", "Where is it?"])) == 2
    assert records(served.bootstrap, FEEDBACK_TOPIC, Feedback, 0, timeout_s=1.0) == []


def test_a_refusal_ends_the_drive_and_says_where_and_why(served: Served) -> None:
    with pytest.raises(DriveFailed, match=r"/v1/chat/completions failed 1 times, at last with 4\d\d"):
        collect(replace(target(served), max_tokens=-1), make_users(20, GUIDED, seed=0))


def test_a_gateway_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.support.drive.FIRST_WAIT_S", 0.001)
    with pytest.raises(DriveFailed, match=r"127\.0\.0\.1:9/v1/chat/completions failed 6 times.*ConnectError"):
        collect(Target("http://127.0.0.1:9"), make_users(1, GUIDED, seed=0))


def test_progress_is_reported_after_every_turn(served: Served) -> None:
    turns: list[int] = []

    def progress(sent: Sent) -> None:
        turns.append(sent.num_turns)

    collect(target(served), make_users(2, GUIDED, seed=0, questions_each=3), on_progress=progress)
    assert turns == [1, 2, 3, 4, 5, 6]
