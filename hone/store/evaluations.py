"""What the gates said of each version, with the numbers behind it."""

from collections.abc import Iterable
from uuid import UUID, uuid5

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from hone.records import GateResult, Verdict
from hone.store.tables import EvaluationRow

NAMESPACE = UUID("0d5f3c7e-6f7b-5a0e-9d7c-3c1f1f6f2b11")


def add_evaluations(session: Session, model_version: str, run_id: str | None, results: Iterable[GateResult]) -> None:
    """Store one row for each gate; those of the same version, run and gate are there already and stay."""
    rows = [
        {
            "evaluation_id": uuid5(NAMESPACE, f"{model_version}|{run_id}|{result.gate}"),
            "model_version": model_version,
            "run_id": run_id,
            "gate": result.gate,
            "verdict": result.verdict.value,
            "reason": result.reason,
            "measurements": result.measurements,
        }
        for result in results
    ]
    if rows:
        session.execute(insert(EvaluationRow).values(rows).on_conflict_do_nothing())


def list_evaluations(session: Session, model_version: str) -> list[GateResult]:
    """Return what was said of the version, in the order of gate names."""
    rows = session.scalars(
        select(EvaluationRow)
        .where(EvaluationRow.model_version == model_version)
        .order_by(EvaluationRow.gate, EvaluationRow.created_at)
    )
    return [
        GateResult(gate=row.gate, verdict=Verdict(row.verdict), reason=row.reason, measurements=row.measurements)
        for row in rows
    ]
