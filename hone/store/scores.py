"""What a reward model said of answers, for rollouts whose goal or guardrail is the reward."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.store.tables import ResponseScoreRow


def store_scores(session: Session, scores: Mapping[UUID, float], scorer: str) -> None:
    """Keep the scorer's newest word on each answer. The caller owns the transaction."""
    if not scores:
        return
    rows = [{"response_id": answer, "scorer": scorer, "score": score} for answer, score in scores.items()]
    statement = insert(ResponseScoreRow).values(rows)
    newest = {"scorer": statement.excluded.scorer, "score": statement.excluded.score}
    session.execute(statement.on_conflict_do_update(index_elements=["response_id"], set_=newest))
