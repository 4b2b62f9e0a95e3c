"""The pair policy: what people did with the answers of one turn, as preferences and labels.

Pure: the same answers and signals, in any order, give the same pairs. docs/pairs.md states it as a table.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from hone.edits import edit_fault
from hone.records import MAX_SIBLINGS, FeedbackKind
from hone.settings import Pairs
from hone.store.pairs import COUNTED_TRACKS, Answer, Label, Pair, Signal

APPROVING_SIGNALS = frozenset({"signal:copied"})
"""What, beside a thumb up, shows that a regenerated answer was what the person wanted."""


@dataclass(frozen=True)
class Turn:
    """One turn, prepared: its answers in the order in which they were served, and the signals about them."""

    answers: tuple[Answer, ...]
    signals: tuple[Signal, ...]

    @property
    def by_id(self) -> dict[UUID, Answer]:
        """Return the answers that may take part in pairs."""
        return {answer.response_id: answer for answer in self.answers[:MAX_SIBLINGS]}

    def of(self, slot: str) -> Iterator[Signal]:
        """Return the signals of one slot, on answers that may take part in pairs."""
        by_id = self.by_id
        return (signal for signal in self.signals if signal.slot == slot and signal.subject_id in by_id)


def derive(answers: Iterable[Answer], signals: Iterable[Signal], policy: Pairs) -> tuple[list[Pair], list[Label]]:
    """Return the pairs and labels that the policy wants for these turns."""
    pairs: list[Pair] = []
    labels: list[Label] = []
    for turn in turns_of(answers, signals):
        said = [pair for rule in (thumb_pairs, edit_pairs, choice_pairs) for pair in rule(turn, policy)]
        pairs += said
        pairs += unsaid(regenerate_pairs(turn, policy), said)
        labels += thumb_labels(turn, policy)
    return pairs, labels


def unsaid(implied: Iterable[Pair], said: Iterable[Pair]) -> list[Pair]:
    """Return the implied pairs of answers between which nobody has said which is better."""
    compared = {frozenset((pair.chosen_id, pair.rejected_id)) for pair in said}
    return [pair for pair in implied if frozenset((pair.chosen_id, pair.rejected_id)) not in compared]


def turns_of(answers: Iterable[Answer], signals: Iterable[Signal]) -> list[Turn]:
    """Group by turn what counts: completed answers with a text that people saw, and the signals about these."""
    by_turn: defaultdict[UUID, list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.completed and answer.track in COUNTED_TRACKS and answer.completion.strip():
            by_turn[answer.turn_id].append(answer)
    by_answer: defaultdict[UUID, list[Signal]] = defaultdict(list)
    for signal in sorted(signals, key=lambda s: (s.occurred_at, s.event_id)):
        by_answer[signal.subject_id].append(signal)
    turns = []
    for served in by_turn.values():
        served.sort(key=lambda answer: (answer.created_at, answer.response_id))
        turns.append(Turn(tuple(served), tuple(s for answer in served for s in by_answer[answer.response_id])))
    return turns


def thumb_pairs(turn: Turn, policy: Pairs) -> list[Pair]:
    """An answer with a person's thumb up beats its siblings with the same person's thumb down."""
    thumbs = [signal for signal in turn.of(FeedbackKind.THUMBS) if signal.value]
    return [
        pair
        for up in thumbs
        for down in thumbs
        if up.user_id == down.user_id and (up.value or 0) > 0 > (down.value or 0)
        for pair in between(turn, "thumbs", up, up.subject_id, down.subject_id, policy, up.signed and down.signed)
    ]


def edit_pairs(turn: Turn, policy: Pairs) -> list[Pair]:
    """A corrected text beats its original, unless it is nearly the same or a different text."""
    pairs = []
    for edit in turn.of(FeedbackKind.EDIT):
        original = turn.by_id[edit.subject_id]
        if edit_fault(original.completion, edit.text or "", policy) is None:
            pairs.append(
                Pair(
                    turn_id=original.turn_id,
                    source="edit",
                    chosen_id=original.response_id,
                    rejected_id=original.response_id,
                    user_id=edit.user_id,
                    body_event_id=edit.event_id,
                    weight=weight(policy.weight_edit, edit.signed, policy),
                    signed=edit.signed,
                )
            )
    return pairs


def choice_pairs(turn: Turn, policy: Pairs) -> list[Pair]:
    """The answer that a person chose beats those that it was chosen over; the person's last choice in a turn counts."""
    ordered = sorted(turn.of(FeedbackKind.CHOICE), key=lambda signal: (signal.occurred_at, signal.event_id))
    last = {choice.user_id: choice for choice in ordered}
    return [
        pair
        for choice in last.values()
        for rejected_id in sorted(set(choice.rejected))
        for pair in between(turn, "choice", choice, choice.subject_id, rejected_id, policy, choice.signed)
    ]


def regenerate_pairs(turn: Turn, policy: Pairs) -> list[Pair]:
    """The answer that a person kept after regenerating beats the earlier ones.

    Not an earlier one with a thumb up, not if the kept one has a thumb down, and not beyond MAX_SIBLINGS answers.
    """
    shown = regenerations(turn.answers)
    if len(shown) < 2 or len(turn.answers) > MAX_SIBLINGS:
        return []
    *earlier, kept = shown
    thumbs = list(turn.of(FeedbackKind.THUMBS))
    liked = {signal.subject_id for signal in thumbs if (signal.value or 0) > 0}
    if any(signal.subject_id == kept.response_id and (signal.value or 0) < 0 for signal in thumbs):
        return []
    worth = max([policy.weight_regenerate, *approvals(turn, kept, policy)])
    return [
        Pair(
            turn_id=kept.turn_id,
            source="regenerate",
            chosen_id=kept.response_id,
            rejected_id=answer.response_id,
            user_id=kept.user_id,
            body_event_id=None,
            weight=worth,
            signed=True,
        )
        for answer in earlier
        if answer.response_id not in liked and differ(kept, answer)
    ]


def regenerations(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers in the order of their requests; a retry (same Idempotency-Key) replaces what it repeats."""
    shown: dict[UUID, Answer] = {}
    for answer in answers:
        shown[answer.idempotency_key or answer.response_id] = answer
    return list(shown.values())


def approvals(turn: Turn, kept: Answer, policy: Pairs) -> list[float]:
    """Return the weights that thumbs up and signs of use lend to a regeneration."""
    return [
        weight(policy.weight_regenerate_then_up, signal.signed, policy)
        for signal in turn.signals
        if signal.subject_id == kept.response_id
        and (
            (signal.slot == FeedbackKind.THUMBS and (signal.value or 0) > 0)
            or (signal.slot in APPROVING_SIGNALS and signal.value != 0)
        )
    ]


def thumb_labels(turn: Turn, policy: Pairs) -> list[Label]:
    """Every thumb that was not taken back is a label, on any answer that counts."""
    turn_id = turn.answers[0].turn_id
    return [
        Label(
            response_id=thumb.subject_id,
            user_id=thumb.user_id,
            turn_id=turn_id,
            label=thumb.value > 0,
            weight=weight(1.0, thumb.signed, policy),
            reasons=tuple(thumb.reasons),
            signed=thumb.signed,
        )
        for thumb in turn.signals
        if thumb.slot == FeedbackKind.THUMBS and thumb.value
    ]


def between(
    turn: Turn, source: str, signal: Signal, chosen_id: UUID, rejected_id: UUID, policy: Pairs, signed: bool
) -> list[Pair]:
    """Return the pair of two siblings, or none where one of them does not count or both say the same."""
    chosen, rejected = turn.by_id.get(chosen_id), turn.by_id.get(rejected_id)
    if chosen is None or rejected is None or not differ(chosen, rejected):
        return []
    base = policy.weight_choice if source == "choice" else policy.weight_thumbs
    return [
        Pair(
            turn_id=chosen.turn_id,
            source=source,
            chosen_id=chosen_id,
            rejected_id=rejected_id,
            user_id=signal.user_id,
            body_event_id=None,
            weight=weight(base, signed, policy),
            signed=signed,
        )
    ]


def differ(one: Answer, other: Answer) -> bool:
    """Say whether two answers differ in more than white space."""
    return one.completion.split() != other.completion.split()


def weight(base: float, signed: bool, policy: Pairs) -> float:
    """Return the weight of a signal: unsigned feedback counts less."""
    return base if signed else base * policy.unsigned_factor
