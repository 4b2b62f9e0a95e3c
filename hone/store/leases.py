"""Leases: one holder at a time may act under a name, and its epoch fences the one before.

Holders compare `expires_at` with their own clocks, so clocks must agree to within the time to live. If they do not, two
may believe that they hold the lease; the epoch still lets only the newer one write.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.errors import Fenced
from hone.store.tables import LeaseRow


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act under `name`."""

    name: str
    holder: str
    epoch: int


def take_lease(session: Session, name: str, holder: str, *, ttl_s: float, now: datetime) -> Lease | None:
    """Return the lease with a new epoch if it is free, expired, or already this holder's; else None."""
    expires_at = now + timedelta(seconds=ttl_s)
    query = (
        insert(LeaseRow)
        .values(name=name, holder=holder, epoch=1, expires_at=expires_at)
        .on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "epoch": LeaseRow.epoch + 1, "expires_at": expires_at},
            where=(LeaseRow.expires_at <= now) | (LeaseRow.holder == holder),
        )
        .returning(LeaseRow.epoch)
    )
    epoch = session.scalar(query)
    return None if epoch is None else Lease(name, holder, epoch)


def renew_lease(session: Session, lease: Lease, *, ttl_s: float, now: datetime) -> None:
    """Extend the lease; one that ran out is extended too, as long as nobody else took it.

    Raises:
        Fenced: somebody took it since.
    """
    held = update(LeaseRow).where(LeaseRow.name == lease.name, LeaseRow.epoch == lease.epoch)
    expires_at = now + timedelta(seconds=ttl_s)
    if session.scalar(held.values(expires_at=expires_at).returning(LeaseRow.epoch)) is None:
        raise lost(lease)


def require_lease(session: Session, lease: Lease) -> None:
    """Keep everybody else from taking the lease until the transaction ends.

    Raises:
        Fenced: somebody took it already; roll back.
    """
    query = select(LeaseRow.epoch).where(LeaseRow.name == lease.name, LeaseRow.epoch == lease.epoch)
    if session.scalar(query.with_for_update()) is None:
        raise lost(lease)


def release_lease(session: Session, lease: Lease, *, now: datetime) -> None:
    """Let the next holder take the lease at once; does nothing when it is somebody else's already."""
    session.execute(
        update(LeaseRow).where(LeaseRow.name == lease.name, LeaseRow.epoch == lease.epoch).values(expires_at=now)
    )


def lost(lease: Lease) -> Fenced:
    """Return the error of a holder whose lease was taken."""
    return Fenced(f"lease {lease.name} of {lease.holder} (epoch {lease.epoch}) has a newer holder: stop acting")
