"""Advisory locks that keep transactions of different programs apart; taken in the order of this page."""

ERASURE_LOCK = 0x6572617365
"""Shared while a person's rows may be written, exclusive while a person is forgotten: none of the rows is missed."""

REVISIONS_LOCK = 0x7265767300
"""Shared while pairs are written, exclusive while a watermark is drawn over their revisions."""

# A statement of its own: what follows it sees every erasure that has committed.
SHARE_WITH_ERASURE = f"SELECT pg_advisory_xact_lock_shared({ERASURE_LOCK})"
SHARE_REVISIONS = f"SELECT pg_advisory_xact_lock_shared({REVISIONS_LOCK})"
EXCLUDE_WRITERS = f"SELECT pg_advisory_xact_lock({ERASURE_LOCK}); {SHARE_REVISIONS}"
"""For an erasure, which also moves revisions."""
