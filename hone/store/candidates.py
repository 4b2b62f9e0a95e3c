"""What people said, as candidates of a dataset: pairs, labels, corrected answers, prompts; and the same, made again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select, union
from sqlalchemy.orm import Session, aliased

from hone.datasets import Candidate, Kind
from hone.errors import Conflict
from hone.records import FeedbackKind, Message, Track
from hone.store.tables import FeedbackEventRow, FeedbackStateRow, PreferencePairRow, ResponseRow, UnaryLabelRow

WHOLE = "stop"
"""The finish reason of an answer that ended by itself."""
PREFERENCE_KINDS = (FeedbackKind.THUMBS, FeedbackKind.EDIT, FeedbackKind.REGENERATE, FeedbackKind.CHOICE)
MAX_IDS_PER_QUERY = 2000

Chosen = aliased(ResponseRow, name="chosen")
Rejected = aliased(ResponseRow, name="rejected")
Events = Mapping[tuple[UUID, UUID], list[UUID]]
"""(person, answer) -> the events with which that person last judged it."""


def candidates_of(session: Session, kind: Kind, watermark: int | None) -> list[Candidate]:
    """Return what is active up to revision `watermark` (None: all), with texts and the events behind it."""
    if kind == "pairs":
        return pair_candidates(session, watermark)
    if kind == "labels":
        return label_candidates(session, watermark)
    if kind == "demonstrations":
        return demonstration_candidates(session, watermark)
    return prompt_candidates(session, watermark)


def label_candidates(session: Session, watermark: int | None) -> list[Candidate]:
    """Return the good and bad marks of single answers."""
    label = UnaryLabelRow
    statement = select(label, ResponseRow).join(ResponseRow, ResponseRow.response_id == label.response_id)
    statement = statement.where(label.active).order_by(label.response_id, label.user_id)
    if watermark is not None:
        statement = statement.where(label.rev <= watermark)
    events = events_by_answer(session, select(label.turn_id).where(label.active))
    return [
        Candidate(
            **answer_facts(response),
            kind="labels",
            completion=response.completion,
            label=mark.label,
            weight=mark.weight,
            source="label",
            user_id=mark.user_id,
            event_ids=tuple(sorted(events.get((mark.user_id, mark.response_id), ()))),
        )
        for mark, response in session.execute(statement)
    ]


def demonstration_candidates(session: Session, watermark: int | None) -> list[Candidate]:
    """Return people's corrected answers. The text is whole, also where the answer that it corrects was cut off."""
    return [
        Candidate(
            kind="demonstrations",
            prompt=pair.prompt,
            completion=pair.chosen,
            weight=pair.weight,
            source=pair.source,
            user_id=pair.user_id,
            turn_id=pair.turn_id,
            response_id=pair.rejected_id,
            body_event_id=pair.body_event_id,
            event_ids=pair.event_ids,
            licenses=pair.licenses,
            eval_only=pair.eval_only,
            is_shadow=pair.is_shadow,
        )
        for pair in pair_candidates(session, watermark)
        if pair.body_event_id is not None
    ]


def prompt_candidates(session: Session, watermark: int | None) -> list[Candidate]:
    """Return the prompt of each turn that somebody gave feedback on, once."""
    turns = union(*(rated_turns(table, watermark) for table in (PreferencePairRow, UnaryLabelRow))).subquery()
    statement = select(ResponseRow).where(ResponseRow.turn_id.in_(select(turns.c.turn_id)))
    statement = statement.order_by(ResponseRow.turn_id, ResponseRow.response_id.desc())
    first = {response.turn_id: response for response in session.scalars(statement)}
    return [
        Candidate(
            **{**answer_facts(response), "is_whole": True, "answered_by": frozenset()},
            kind="prompts",
            source="prompt",
            user_id=response.user_id,
        )
        for response in first.values()
    ]


def rated_turns(table: type[PreferencePairRow] | type[UnaryLabelRow], watermark: int | None) -> Select[Any]:
    """Select the turns of the table's active rows up to the watermark."""
    statement = select(table.turn_id).where(table.active)
    return statement if watermark is None else statement.where(table.rev <= watermark)


def answer_facts(response: ResponseRow) -> dict[str, Any]:
    """Return what a candidate takes over from the one answer that it is about."""
    return {
        "prompt": messages_of(response.messages),
        "turn_id": response.turn_id,
        "response_id": response.response_id,
        "answered_by": frozenset([response.model_version]),
        "licenses": frozenset([response.license] if response.license is not None else []),
        "eval_only": response.eval_only,
        "is_shadow": response.track == Track.SHADOW,
        "is_whole": response.completed and response.finish_reason == WHOLE,
    }


def pair_candidates(session: Session, watermark: int | None) -> list[Candidate]:
    """Return the active pairs up to the watermark, with texts and the events behind them."""
    pair = PreferencePairRow
    statement = (
        select(pair, Chosen, Rejected, FeedbackEventRow.text)
        .join(Chosen, Chosen.response_id == pair.chosen_id)
        .join(Rejected, Rejected.response_id == pair.rejected_id)
        .outerjoin(FeedbackEventRow, FeedbackEventRow.event_id == pair.body_event_id)
        .where(pair.active)
        .order_by(pair.turn_id, pair.source, pair.chosen_id, pair.rejected_id, pair.user_id)
    )
    if watermark is not None:
        statement = statement.where(pair.rev <= watermark)
    events = events_by_answer(session, select(pair.turn_id).where(pair.active))
    return [candidate_of(*row, events) for row in session.execute(statement)]


def candidate_of(
    pair: PreferencePairRow,
    chosen: ResponseRow,
    rejected: ResponseRow,
    text: str | None,
    events: Events,
) -> Candidate:
    """Return the candidate of a stored pair; of an edit, `text` is the corrected answer."""
    answers = (chosen, rejected)
    event_ids = {id for answer in answers for id in events.get((pair.user_id, answer.response_id), ())}
    if pair.body_event_id:
        event_ids.add(pair.body_event_id)
    return Candidate(
        prompt=messages_of(rejected.messages),
        chosen=chosen.completion if pair.body_event_id is None else text or "",
        rejected=rejected.completion,
        weight=pair.weight,
        source=pair.source,
        user_id=pair.user_id,
        turn_id=pair.turn_id,
        chosen_id=pair.chosen_id,
        rejected_id=pair.rejected_id,
        body_event_id=pair.body_event_id,
        event_ids=tuple(sorted(event_ids)),
        answered_by=frozenset(a.model_version for a in (answers if pair.body_event_id is None else (rejected,))),
        licenses=frozenset(answer.license for answer in answers if answer.license is not None),
        eval_only=any(answer.eval_only for answer in answers),
        is_shadow=any(answer.track == Track.SHADOW for answer in answers),
        is_whole=all(answer.completed and answer.finish_reason == WHOLE for answer in answers),
    )


def events_by_answer(session: Session, turns: Select[Any]) -> dict[tuple[UUID, UUID], list[UUID]]:
    """Return the events behind the answers of the selected turns, see `Events`."""
    state = FeedbackStateRow
    statement = select(state.user_id, state.subject_id, state.event_id).where(
        state.slot.in_([kind.value for kind in PREFERENCE_KINDS]),
        state.turn_id.in_(turns),
    )
    found: dict[tuple[UUID, UUID], list[UUID]] = {}
    for user_id, subject_id, event_id in session.execute(statement):
        found.setdefault((user_id, subject_id), []).append(event_id)
    return found


def messages_of(messages: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return stored messages as records."""
    return tuple(Message(role=message["role"], content=message.get("content")) for message in messages)


def rebuilt_candidates(session: Session, kind: Kind, entries: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Yield the candidates that the manifest's rows name, from responses and events alone.

    Raises:
        Conflict: an answer or event is gone.
    """
    names = ("chosen_id", "rejected_id", "response_id")
    responses = fetch(session, ResponseRow, {UUID(entry[key]) for entry in entries for key in names if key in entry})
    events = fetch(
        session, FeedbackEventRow, {UUID(entry["body_event_id"]) for entry in entries if "body_event_id" in entry}
    )
    for entry in entries:
        try:
            yield rebuilt_candidate(kind, entry, responses, events)
        except KeyError as missing:
            raise Conflict(f"row {entry['row_id']} cannot be made again: {missing} was erased") from None


def rebuilt_candidate(
    kind: Kind, entry: Mapping[str, Any], responses: Mapping[UUID, Any], events: Mapping[UUID, Any]
) -> Candidate:
    """Return one row's candidate. Raises KeyError when an answer or event is gone."""
    names = ("user_id", "turn_id", "chosen_id", "rejected_id", "response_id", "body_event_id")
    ids: dict[str, Any] = {name: UUID(entry[name]) for name in names if name in entry}
    shown = responses[ids["rejected_id" if kind == "pairs" else "response_id"]]
    corrected = (events[ids["body_event_id"]].text or "") if "body_event_id" in ids else None
    texts = {}
    if kind == "pairs":
        chosen = responses[ids["chosen_id"]].completion if corrected is None else corrected
        texts = {"chosen": chosen, "rejected": shown.completion}
    elif kind != "prompts":
        texts = {"completion": shown.completion if corrected is None else corrected}
    return Candidate(
        kind=kind,
        prompt=messages_of(shown.messages),
        weight=entry["weight"],
        source=entry["source"],
        label=entry.get("label"),
        off_policy=entry.get("off_policy"),
        **texts,
        **ids,
    )


def fetch(session: Session, table: type[Any], ids: set[UUID]) -> dict[UUID, Any]:
    """Return the rows of the given primary keys."""
    key = table.__mapper__.primary_key[0]
    found: dict[UUID, Any] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), MAX_IDS_PER_QUERY):
        chunk = wanted[start : start + MAX_IDS_PER_QUERY]
        for row in session.scalars(select(table).where(key.in_(chunk))):
            found[getattr(row, key.key)] = row
    return found
