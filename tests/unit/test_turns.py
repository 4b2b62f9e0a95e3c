"""What a gateway remembers of turns, so that the first answer of one is never a duel."""

from uuid import UUID

from hone.records import Track
from serving.gateway.turns import FirstAnswer, Turns

ROLLOUT, TURN = UUID(int=77), UUID(int=1)


def first(retry: int | None = None, track: Track = Track.STABLE) -> FirstAnswer:
    return FirstAnswer(ROLLOUT, track, None if retry is None else UUID(int=retry))


def test_a_turn_is_a_regenerate_once_it_was_answered_and_only_for_the_first_time() -> None:
    turns = Turns()
    assert turns.again(TURN, None) is None
    turns.note(TURN, first())
    again = turns.again(TURN, None)
    assert again is not None
    assert (again.turn_id, again.rollout_id, again.track) == (TURN, ROLLOUT, Track.STABLE)
    turns.note(TURN, first())
    assert turns.again(TURN, None) is None


def test_the_same_request_sent_twice_is_no_regenerate() -> None:
    turns = Turns()
    turns.note(TURN, first(retry=5))
    assert turns.again(TURN, UUID(int=5)) is None
    turns.note(TURN, first(retry=5))
    assert turns.again(TURN, UUID(int=6)) is not None


def test_an_answer_that_is_not_of_the_users_own_arm_opens_no_duel() -> None:
    turns = Turns()
    turns.note(TURN, None)
    assert turns.again(TURN, None) is None


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    turns = Turns(max_turns=2)
    for number in range(3):
        turns.note(UUID(int=number), first())
    assert [turns.again(UUID(int=number), None) is not None for number in range(3)] == [False, True, True]
