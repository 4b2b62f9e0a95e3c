"""Feedback as clients send it: what is read, and what each fault is told."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.records import FeedbackKind
from serving.gateway.acts import read_act, read_document
from serving.http import Problem

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param({"kind": "thumbs", "value": 1}, {"value": 1.0}, id="a thumb"),
        pytest.param({"kind": "thumbs", "value": 0}, {"value": 0.0}, id="a thumb taken back"),
        pytest.param({"kind": "edit", "value": "better"}, {"text": "better"}, id="an edit"),
        pytest.param({"kind": "regenerate", "value": 0.25}, {"value": 0.25}, id="another answer wanted"),
        pytest.param({"kind": "regenerate"}, {"value": 1.0}, id="another answer wanted at the end"),
        pytest.param({"kind": "choice", "value": {"rejected": ["a"]}}, {"rejected": ("a",)}, id="a choice"),
        pytest.param({"kind": "comment", "value": "hm"}, {"text": "hm"}, id="a comment"),
        pytest.param({"kind": "signal", "value": {"name": "copied"}}, {"name": "copied", "value": None}, id="a signal"),
        pytest.param(
            {"kind": "outcome", "value": {"name": "resolved", "value": 1}},
            {"name": "resolved", "value": 1.0},
            id="an outcome",
        ),
        pytest.param(
            {"kind": "outcome", "name": "resolved", "value": True},
            {"name": "resolved", "value": 1.0},
            id="an outcome with its name beside it",
        ),
    ],
)
def test_each_kind_is_read(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    act = read_act({"response_id": "t"} | sent, "", NOW)
    assert {key: getattr(act, key) for key in expected} == expected
    assert act.content(NOW)["occurred_at"] == NOW


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"kind": "thumbs", "value": 2}, "value", "-1 (down)"),
    ({"kind": "thumbs", "value": 0.5}, "value", "-1 (down)"),
    ({"kind": "thumbs", "value": True}, "value", "-1 (down)"),
    ({"kind": "thumbs", "value": "up"}, "value", "-1 (down)"),
    ({"kind": "clap", "value": 1}, "kind", "thumbs"),
    ({"value": 1}, "kind", "thumbs"),
    ({"kind": "edit", "value": "  "}, "value", "send the text"),
    ({"kind": "edit", "value": "a\x00b"}, "value", "leave that character out"),
    ({"kind": "regenerate", "value": 1.5}, "value", "0 to 1"),
    ({"kind": "choice", "value": ["a"]}, "value", "rejected"),
    ({"kind": "choice", "value": {"rejected": []}}, "value", "rejected"),
    ({"kind": "choice", "value": {"rejected": [1]}}, "value.rejected", "ids"),
    ({"kind": "signal", "value": {}}, "name", "1 to 128"),
    ({"kind": "outcome", "value": {"name": "kpi", "value": "x"}}, "value", "number"),
    ({"kind": "outcome", "value": {"name": "kpi", "value": 10**400}}, "value", "number"),
    ({"kind": "outcome", "value": {"name": "kpi", "value": float("nan")}}, "value", "number"),
    ({"kind": "thumbs", "value": -(10**400)}, "value", "-1 (down)"),
    ({"kind": "thumbs", "value": 1, "reasons": ["ugly"]}, "reasons[0]", "hallucinated"),
    ({"kind": "edit", "value": "x", "reasons": ["wrong"]}, "reasons", "thumbs only"),
    ({"kind": "thumbs", "value": 1, "event_id": "7"}, "event_id", "uuid"),
    ({"kind": "thumbs", "value": 1, "occurred_at": "2026-03-01T12:00:00"}, "occurred_at", "zone"),
    ({"kind": "thumbs", "value": 1, "occurred_at": "2026-03-01T12:05:01Z"}, "occurred_at", "future"),
    ({"kind": "thumbs", "value": 1, "occurred_at": "1970-01-01T00:00:00Z"}, "occurred_at", "RFC 3339"),
    ({"kind": "thumbs", "value": 1, "vote": 3}, "vote", "unknown field"),
    ({"kind": "thumbs", "value": 1, "user": "ann"}, "conversation_id", "leave"),
    ({"kind": "thumbs", "value": 1, "response_id": None}, "response_id", "`id` of the answer"),
]


@pytest.mark.parametrize(("sent", "field", "remedy"), FAULTS)
def test_a_fault_names_field_value_and_remedy(sent: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(Problem) as caught:
        read_act({"response_id": "t"} | sent, "events[3].", NOW)
    (error,) = caught.value.errors
    assert caught.value.status == 422
    assert error.field.removeprefix("events[3].") == field.removeprefix("events[3].")
    assert remedy in error.remedy
    assert error.value != str(sent.get("reasons")), "one of a list is named, so one is shown"
    assert msgspec.json.decode(caught.value.body())["errors"][0]["field"].startswith("events[3].")


def test_the_clock_may_be_five_minutes_ahead() -> None:
    sent = {"kind": "thumbs", "value": 1, "response_id": "t", "occurred_at": "2026-03-01T12:05:00Z"}
    assert read_act(sent, "", NOW).occurred_at == datetime(2026, 3, 1, 12, 5, tzinfo=UTC)


def test_an_outcome_may_speak_of_a_conversation_instead_of_an_answer() -> None:
    act = read_act({"kind": "outcome", "conversation_id": "c1", "value": {"name": "resolved", "value": 1}}, "", NOW)
    assert (act.response_id, act.conversation_id) == (None, "c1")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"{", 400, id="half an object"),
        pytest.param(b"\xff\xfe", 400, id="no text"),
        pytest.param(b"[" * 5000, 400, id="deep nesting"),
        pytest.param(b"7", 422, id="a number"),
        pytest.param(b'{"events": []}', 422, id="an empty batch"),
        pytest.param(b'{"events": {}}', 422, id="a batch that is no list"),
        pytest.param(b'{"events": [{}], "kind": "thumbs"}', 422, id="a batch beside an act"),
    ],
)
def test_a_body_that_is_no_act_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as caught:
        read_document(body)
    assert caught.value.status == status


numbers = st.integers() | st.integers(10**300, 10**400) | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=12),
    lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(st.text(max_size=6), deeper, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(["response_id", "value", "name", "reasons", "occurred_at", "user", "x"])


@given(st.sampled_from(FeedbackKind), st.dictionaries(fields, anything))
def test_whatever_is_sent_is_either_read_or_refused_as_a_problem_in_json(
    kind: FeedbackKind, sent: dict[str, Any]
) -> None:
    status = 202
    try:
        (item,) = read_document(json.dumps(sent | {"kind": kind.value}).encode()).items
        read_act(item, "", NOW)
    except Problem as problem:
        status = msgspec.json.decode(problem.body())["status"]
    assert status in (202, 400, 422)
