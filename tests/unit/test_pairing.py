"""The pair policy, one sentence a test."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.edits import edit_share, word_distance
from hone.records import MAX_SIBLINGS, Feedback, Response, Track
from hone.settings import Pairs
from hone.store.pairs import Answer, Label, Pair, Signal
from ingest.pairing import derive
from tests.support.events import feedback, response, uid

POLICY = Pairs()

TWO = [response("a", second=0, idempotency_key=uid("k")), response("b", second=1, idempotency_key=uid("k"))]
"""Two siblings that are no regeneration: other rules stand alone."""

REGENERATED = [response("a", second=0, idempotency_key=uid("1")), response("b", second=1, idempotency_key=uid("2"))]


def answer(record: Response) -> Answer:
    return Answer(**{name: getattr(record, name) for name in Answer.__dataclass_fields__})


def signal(event: Feedback) -> Signal:
    slot = f"{event.kind}:{event.name}" if event.kind == "signal" else str(event.kind)
    fields = {name: getattr(event, name) for name in Signal.__dataclass_fields__ if hasattr(event, name)}
    assert event.response_id
    return Signal(**fields, subject_id=event.response_id, slot=slot)


def decide(responses: Sequence[Response], *events: Feedback, policy: Pairs = POLICY) -> tuple[list[Pair], list[Label]]:
    return derive(map(answer, responses), map(signal, events), policy)


def preferences(pairs: Sequence[Pair]) -> set[tuple[str, UUID, UUID, float]]:
    return {(pair.source, pair.chosen_id, pair.rejected_id, round(pair.weight, 3)) for pair in pairs}


def up(on: str, **fields: object) -> Feedback:
    return feedback("thumbs", on, value=1, **fields)  # type: ignore[arg-type]


def down(on: str, **fields: object) -> Feedback:
    return feedback("thumbs", on, value=-1, **fields)  # type: ignore[arg-type]


A, B, C = uid("a"), uid("b"), uid("c")


@pytest.mark.parametrize(
    ("responses", "events", "expected"),
    [
        pytest.param(TWO, [up("a"), down("b")], {("thumbs", A, B, 0.8)}, id="a thumb up beats a thumb down"),
        pytest.param(TWO, [up("a")], set(), id="a thumb up alone is no pair"),
        pytest.param(TWO, [up("a"), up("b")], set(), id="two thumbs up are no pair"),
        pytest.param(
            TWO, [up("a"), feedback("thumbs", "b", value=0)], set(), id="a thumb that was taken back is no pair"
        ),
        pytest.param(TWO, [up("a"), down("b", user="bob")], set(), id="thumbs of two people make no pair"),
        pytest.param(
            TWO,
            [up("a", signed=False), down("b")],
            {("thumbs", A, B, 0.2)},
            id="one unsigned thumb weighs the pair down",
        ),
        pytest.param(
            TWO, [feedback("choice", "a", rejected=(B,))], {("choice", A, B, 1.0)}, id="a chosen answer beats the other"
        ),
        pytest.param(
            TWO,
            [feedback("choice", "a", rejected=(B,), second=1), feedback("choice", "b", rejected=(A,), second=2)],
            {("choice", B, A, 1.0)},
            id="a person's last choice counts",
        ),
        pytest.param(
            TWO,
            [feedback("choice", "a", rejected=(B,)), feedback("choice", "b", rejected=(A,), user="bob")],
            {("choice", A, B, 1.0), ("choice", B, A, 1.0)},
            id="two people may choose differently",
        ),
        pytest.param(
            TWO, [feedback("choice", "a", rejected=(C,))], set(), id="a rejected answer of another turn is no pair"
        ),
        pytest.param(
            TWO,
            [feedback("choice", "a", rejected=(B,)), up("b"), down("a")],
            {("choice", A, B, 1.0), ("thumbs", B, A, 0.8)},
            id="contradictions are kept, by source",
        ),
        pytest.param(REGENERATED, [], {("regenerate", B, A, 0.3)}, id="a kept regeneration beats the first answer"),
        pytest.param(
            REGENERATED, [up("b")], {("regenerate", B, A, 0.9)}, id="a thumb up makes a regeneration a strong pair"
        ),
        pytest.param(
            REGENERATED,
            [feedback("signal", "b", name="copied")],
            {("regenerate", B, A, 0.9)},
            id="a copied regeneration is a strong pair",
        ),
        pytest.param(
            REGENERATED,
            [feedback("signal", "b", name="copied", value=0)],
            {("regenerate", B, A, 0.3)},
            id="a copy that was taken back does not count",
        ),
        pytest.param(
            REGENERATED, [up("b", signed=False)], {("regenerate", B, A, 0.3)}, id="an unsigned thumb up lifts nothing"
        ),
        pytest.param(
            REGENERATED,
            [feedback("choice", "a", rejected=(B,))],
            {("choice", A, B, 1.0)},
            id="a choice silences the regeneration that it contradicts",
        ),
        pytest.param(
            REGENERATED,
            [down("a"), up("b")],
            {("thumbs", B, A, 0.8)},
            id="thumbs silence the regeneration that they confirm",
        ),
        pytest.param(REGENERATED, [up("a")], set(), id="a regeneration does not beat an answer with a thumb up"),
        pytest.param(REGENERATED, [down("b")], set(), id="a regeneration with a thumb down is not kept"),
        pytest.param(
            [*REGENERATED, response("c", second=2, idempotency_key=uid("3"))],
            [],
            {("regenerate", C, A, 0.3), ("regenerate", C, B, 0.3)},
            id="only the last regeneration is kept",
        ),
        pytest.param(TWO, [], set(), id="the same idempotency key is a retry, not a regeneration"),
        pytest.param(
            [response("a", second=0), response("b", second=1)],
            [],
            {("regenerate", B, A, 0.3)},
            id="two requests without a key are a regeneration",
        ),
        pytest.param(
            [response("a", completed=False), response("b", second=1)],
            [],
            set(),
            id="an unfinished answer does not count",
        ),
        pytest.param(
            [response("a", track=Track.SHADOW), response("b", second=1)], [], set(), id="a shadow answer does not count"
        ),
        pytest.param(
            [response("a", track=Track.REPLAY), response("b", track=Track.CANARY, second=1)],
            [],
            {("regenerate", B, A, 0.3)},
            id="recorded and canary answers count",
        ),
        pytest.param(
            [response("a", completion="  "), response("b", second=1)],
            [down("a"), up("b")],
            set(),
            id="nor an empty one",
        ),
        pytest.param(
            [response("a", completion="the same"), response("b", completion="the  same\n", second=1)],
            [up("a"), down("b"), feedback("choice", "a", rejected=(B,))],
            set(),
            id="equal texts make no pair",
        ),
        pytest.param(
            [response("a", turn="t1", idempotency_key=uid("1")), response("b", turn="t2", idempotency_key=uid("2"))],
            [up("a"), down("b")],
            set(),
            id="answers of two turns make no pair",
        ),
    ],
)
def test_policy(
    responses: list[Response], events: list[Feedback], expected: set[tuple[str, UUID, UUID, float]]
) -> None:
    assert preferences(decide(responses, *events)[0]) == expected


TEN_WORDS = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("text", "makes_pair"),
    [
        pytest.param(TEN_WORDS.replace("ten", "TEN!"), True, id="one word in ten is a correction"),
        pytest.param(TEN_WORDS, False, id="the same text is none"),
        pytest.param("  " + TEN_WORDS + "\n", False, id="nor is white space"),
        pytest.param("something else entirely", False, id="nor is another text"),
        pytest.param("", False, id="nor is no text"),
    ],
)
def test_an_edit_beats_its_original_within_the_distances(text: str, makes_pair: bool) -> None:
    edit = feedback("edit", "a", text=text)
    pairs, _ = decide([response("a", completion=TEN_WORDS)], edit)
    assert len(pairs) == makes_pair
    for pair in pairs:
        assert (pair.source, pair.chosen_id, pair.rejected_id, pair.body_event_id) == ("edit", A, A, edit.event_id)


def test_thumbs_are_labels_with_their_reasons_and_weights() -> None:
    events = [up("a"), down("b", reasons=("wrong",), signed=False), feedback("thumbs", "a", user="bob", value=0)]
    _, labels = decide(TWO, *events)
    assert {(label.response_id, label.label, label.weight, label.reasons) for label in labels} == {
        (A, True, 1.0, ()),
        (B, False, 0.25, ("wrong",)),
    }


def test_a_pair_belongs_to_the_person_whose_feedback_made_it() -> None:
    pairs, _ = decide(TWO, feedback("choice", "a", rejected=(B,), user="bob"))
    assert [pair.user_id for pair in pairs] == [uid("bob")]
    pairs, _ = decide([response("a", user="ann"), response("b", user="ann", second=1)])
    assert [pair.user_id for pair in pairs] == [uid("ann")]


def test_answers_beyond_the_limit_are_compared_with_nothing() -> None:
    many = [response(f"r{n}", second=n) for n in range(MAX_SIBLINGS + 2)]
    beyond = f"r{MAX_SIBLINGS}"
    pairs, labels = decide(many, up("r0"), down("r1"), down(beyond))
    assert preferences(pairs) == {("thumbs", uid("r0"), uid("r1"), 0.8)}
    assert uid(beyond) in {label.response_id for label in labels}


def test_feedback_on_an_unknown_answer_waits() -> None:
    assert decide([], up("a"), feedback("edit", "a", text="x")) == ([], [])


def naive_distance(old: list[str], new: list[str]) -> int:
    row = list(range(len(new) + 1))
    for i, left in enumerate(old, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(new, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


words = st.lists(st.sampled_from("abcd"), max_size=70)


@given(words, words)
def test_the_bit_parallel_distance_equals_the_table(old: list[str], new: list[str]) -> None:
    assert word_distance(old, new) == naive_distance(old, new)


def test_the_edit_share_of_long_texts_is_quick() -> None:
    long = " ".join(str(n) for n in range(20_000))
    assert edit_share(long, long.replace("77 ", "seventy-seven ")) < 0.02


@given(st.permutations([0, 1, 2, 3, 4, 5]))
def test_the_order_of_answers_and_signals_changes_nothing(order: list[int]) -> None:
    responses = [response(f"r{n}", second=n % 3, completion=f"text {n}") for n in range(6)]
    events = [
        *(up("r0", event_id=uid("1")), down("r1", event_id=uid("2")), up("r2", user="bob", event_id=uid("3"))),
        *(feedback("choice", f"r{n}", rejected=(uid("r0"),), event_id=uid(f"c{n}")) for n in (3, 4, 5)),
    ]
    expected = decide(responses, *events)
    shuffled = decide([responses[i] for i in order], *(events[i] for i in order))
    for one, other in zip(expected, shuffled, strict=True):
        assert sorted(map(msgspec.json.encode, one)) == sorted(map(msgspec.json.encode, other))
