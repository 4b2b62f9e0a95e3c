"""Duels of a rollout: a regenerate that the other arm answered, and which of the two answers its user preferred."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

# The preference is the pair that the platform derives from what the person did: said before implied.
DUELS = """
SELECT d.track = 'canary' AS canary_second, coalesce(p.second_preferred, 0) AS second_preferred
FROM (
    SELECT DISTINCT ON (user_id) * FROM response
    WHERE rollout_id = :rollout_id AND duel AND completed AND NOT fallback AND created_at <= :until
    ORDER BY user_id, created_at, response_id
) d
JOIN LATERAL (
    SELECT response_id FROM response
    WHERE turn_id = d.turn_id AND user_id = d.user_id AND rollout_id = d.rollout_id AND track <> d.track
      AND track IN ('stable', 'canary') AND NOT duel AND NOT fallback AND completed AND created_at <= d.created_at
    ORDER BY created_at, response_id LIMIT 1
) f ON true
LEFT JOIN LATERAL (
    SELECT CASE WHEN chosen_id = d.response_id THEN 1 ELSE -1 END AS second_preferred FROM preference_pair
    WHERE turn_id = d.turn_id AND user_id = d.user_id AND active
      AND (chosen_id, rejected_id) IN ((d.response_id, f.response_id), (f.response_id, d.response_id))
    ORDER BY CASE source WHEN 'choice' THEN 0 WHEN 'thumbs' THEN 1 ELSE 2 END LIMIT 1
) p ON true
ORDER BY d.created_at, d.response_id
"""


@dataclass(frozen=True, slots=True)
class Duel:
    """One user's first duel; `second_preferred` is 1, -1, or 0 where nothing says which answer is better."""

    canary_second: bool
    second_preferred: int


def list_duels(session: Session, rollout_id: UUID, *, until: datetime) -> list[Duel]:
    """Return the first duel of each user up to `until`, in the order of time."""
    rows = session.execute(text(DUELS), {"rollout_id": rollout_id, "until": until})
    return [Duel(row.canary_second, row.second_preferred) for row in rows]
