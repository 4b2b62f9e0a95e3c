"""One chat request from decision to record."""

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from hone.records import Response, Track
from hone.tokens import Claims
from serving.gateway.ask import Ask
from serving.gateway.sse import Reading
from serving.gateway.upstreams import NamedUpstream
from serving.router import Decision

MAX_COMPLETION_BYTES = 512 * 1024
"""Of UTF-8: with the longest messages, a record then stays below the megabyte that brokers take by default."""


@dataclass(eq=False)
class Exchange:
    """What is known so far of a request and its answer. Times are monotonic seconds."""

    ask: Ask
    decision: Decision
    named: NamedUpstream | None
    "The registered upstream that answers, outside of rollouts."
    response_id: UUID
    arrived: float
    token: str = ""
    "The id that the answer carries."
    fallback: bool = False
    refused: bool = False
    "The model server would not answer: the request is at fault, or our quota is used up. Nothing to record."
    failed: bool = False
    "The model server did not answer, or broke off."
    left: bool = False
    "The client left before the answer was whole."
    status: int = 500
    "What is counted where the client has seen no byte: what it heard instead, or 499, as with nginx, where it left."
    begun: bool = False
    "Whether the client has seen a byte."
    first_byte: float | None = None
    asked_at: float | None = None
    "When the upstream was asked (again, after a fallback)."
    upstream_ended: float | None = None
    ended: float | None = None
    withheld: str | None = None
    "Why the response hook did not let the model's answer out; None where it did."
    whole: bool = False
    "Whether the upstream's answer came to its end, and went out."

    @functools.cached_property
    def reading(self) -> Reading:
        """What the answer says."""
        return Reading(stream=self.ask.stream)

    @property
    def track(self) -> Track:
        """Return the arm that answered."""
        return Track.STABLE if self.fallback else self.decision.track

    @property
    def model_version(self) -> str:
        """Return the version that answered."""
        return self.decision.fallback or "" if self.fallback else self.decision.model_version

    @property
    def is_named(self) -> bool:
        """Say whether a registered upstream answers."""
        return self.named is not None

    def claims(self, now: datetime, ttl_s: int) -> Claims:
        """Return what the token of this answer says."""
        ask = self.ask
        return Claims(self.response_id, ask.conversation_id, ask.turn_id, ask.user_id, now + timedelta(seconds=ttl_s))

    def broken_by(self) -> str | None:
        """Return why an answer without a finish reason has none: `error`, or `cancelled` by the client."""
        if self.whole:
            return None
        return "cancelled" if self.left and not self.failed else "error"

    def outcome(self, *, completed: bool) -> str:
        """Return what the metric counts the answer as."""
        if completed:
            return "completed"
        if self.left and not self.failed:
            return "left"
        return "partial" if self.begun else "failed"

    def is_complete(self) -> bool:
        """Say whether the bytes so far are an answer with a finish reason."""
        return self.reading.summary().finish_reason is not None

    def response(self, created_at: datetime) -> Response:
        """Return the record of what was served, also of an answer that broke off."""
        summary = self.reading.summary()
        completion, is_all = storable(summary.text)
        ended = self.ended or self.arrived
        return Response(
            response_id=self.response_id,
            conversation_id=self.ask.conversation_id,
            turn_id=self.ask.turn_id,
            user_id=self.ask.user_id,
            messages=self.ask.messages,
            completion=completion,
            model_version=self.model_version,
            track=self.track,
            rollout_id=self.decision.rollout_id,
            stage=self.decision.stage,
            propensity=self.decision.propensity,
            duel=self.decision.duel,
            fallback=self.fallback,
            parameters=self.ask.parameters() | ({} if self.withheld is None else {"withheld": self.withheld}),
            finish_reason=summary.finish_reason or self.broken_by(),
            completed=self.whole and is_all and summary.finish_reason is not None,
            idempotency_key=self.ask.idempotency_key,
            latency_ms=(ended - self.arrived) * 1000,
            first_byte_ms=None if self.first_byte is None else (self.first_byte - self.arrived) * 1000,
            num_prompt_tokens=summary.num_prompt_tokens,
            num_completion_tokens=summary.num_completion_tokens,
            license=self.ask.metadata.get("license") if self.is_named else None,
            eval_only=self.is_named and self.ask.metadata.get("eval_only") == "true",
            created_at=created_at,
        )


def storable(text: str) -> tuple[str, bool]:
    """Return the text as Postgres and Kafka take it, and whether that is all of it."""
    data = text.replace("\x00", "\ufffd").encode("utf-8", "replace")
    return data[:MAX_COMPLETION_BYTES].decode("utf-8", "ignore"), len(data) <= MAX_COMPLETION_BYTES
