"""Everything that hone raises on purpose; caught at the edge of a program, nowhere else.

HoneError
├── ConfigError       a setting is unknown, missing or out of range
├── InvalidEvent      a message that can never be processed: it goes to `dead_letter`
├── TokenError        an answer's id is not a feedback token of ours
│   ├── MalformedToken    not even the shape of one (HTTP 404)
│   └── RejectedToken     forged, expired, or another user's (HTTP 403)
├── Retryable         a broker, database or cluster is away; the same call may succeed later
├── Fenced            somebody newer owns this partition, lease or rollout; stop writing
├── Conflict          the stored state does not allow this change (already claimed, final, other version)
├── NotEnoughData     fewer rows than the step needs
└── ProgramFailed     a child program did not start, or ended badly
"""


class HoneError(Exception):
    """Base class. The message says what happened, the value, and what to do."""


class ConfigError(HoneError):
    """A setting is unknown, missing or out of range."""


class InvalidEvent(HoneError):
    """A message that can never be processed; it goes to `dead_letter` with this reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """`reason` is a short stable word that metrics count; `detail` is for people."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class TokenError(HoneError):
    """An answer's id cannot be used to give feedback."""


class MalformedToken(TokenError):
    """The id does not have the shape of a feedback token."""


class RejectedToken(TokenError):
    """The token is forged, expired, signed with an unknown key, or belongs to another user."""


class Retryable(HoneError):
    """A broker, database or cluster is away; the same call may succeed later."""


class Fenced(HoneError):
    """Somebody newer owns this partition, lease or rollout: drop the work and stop writing."""


class Conflict(HoneError):
    """The stored state does not allow this change."""


class NotEnoughData(HoneError):
    """Fewer rows than the step needs."""


class ProgramFailed(HoneError):
    """A child program did not start in time, or ended badly."""
