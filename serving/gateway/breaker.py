"""When to stop asking a service that fails, and when to try it again: a circuit breaker. Pure.

Closed: every call is made. After so many failures in a row it opens: no call is made, and nobody waits for a timeout.
After a while one call is let through (half-open): the breaker closes with its success, or stays open as long again.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Policy:
    """`num_failures` in a row open the breaker (0: never), for `open_s` seconds before each trial."""

    num_failures: int
    open_s: float


@dataclass(frozen=True)
class Breaker:
    """How a service has done. Times are of any one clock, in seconds."""

    failures: int = 0
    "In a row."
    try_at: float | None = None
    "When the next trial is due; None while closed."
    trying: bool = False
    "Whether a trial is on its way."


CLOSED = Breaker()


def admit(breaker: Breaker, now: float) -> Breaker | None:
    """Return the state with one more call on its way, or None if that call is not to be made."""
    if breaker.try_at is None:
        return breaker
    if breaker.trying or now < breaker.try_at:
        return None
    return replace(breaker, trying=True)


def succeeded(_: Breaker) -> Breaker:
    """Return the state after a call that succeeded, also one that began before the breaker opened."""
    return CLOSED


def failed(breaker: Breaker, policy: Policy, now: float, *, was_trial: bool) -> Breaker:
    """Return the state after a call that failed.

    Calls that began before the breaker opened and fail afterwards tell nothing new: they do not put off the trial.
    """
    if breaker.try_at is not None and not was_trial:
        return breaker
    failures = breaker.failures + 1
    if policy.num_failures == 0 or failures < policy.num_failures:
        return Breaker(failures)
    return Breaker(failures, try_at=now + policy.open_s)


def abandoned(breaker: Breaker, *, was_trial: bool) -> Breaker:
    """Return the state after a call whose outcome nobody waited for: the next one is the trial."""
    return replace(breaker, trying=False) if was_trial else breaker
