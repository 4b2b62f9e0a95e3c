"""The registry: content-addressed versions, aliases by compare-and-set, overrides that leave a trace."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, Conflict, NotEnoughData
from hone.records import GateResult, Verdict
from hone.store.audit import append_audit, first_broken
from hone.store.evaluations import add_evaluations, list_evaluations
from hone.store.models import (
    get_alias,
    get_model,
    import_model,
    may_reach_traffic,
    override_gates,
    register_model,
    set_alias,
    set_verdict,
    stable_model,
)
from hone.store.tables import AuditRow

Sessions = sessionmaker[Session]
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def weights(directory: Path, content: bytes) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(content)
    return directory


def register(session: Session, digest: str, status: str = "candidate") -> str:
    return register_model(session, digest=digest * 64, directory=Path("/models") / digest, status=status)


def test_equal_weights_are_one_version_wherever_they_lie(sessions: Sessions, tmp_path: Path) -> None:
    with sessions.begin() as session:
        first = import_model(session, weights(tmp_path / "a", b"same"))
        assert import_model(session, weights(tmp_path / "b", b"same")) == first
        assert import_model(session, weights(tmp_path / "c", b"other")) != first
        row = get_model(session, first)
        assert row.directory == str(tmp_path / "a")
        assert row.digest.startswith(first.removeprefix("m-"))
        assert may_reach_traffic(row)


def test_a_directory_without_weights_is_refused(sessions: Sessions, tmp_path: Path) -> None:
    with sessions() as session, pytest.raises(ConfigError, match="safetensors"):
        import_model(session, tmp_path)


@pytest.mark.parametrize(
    ("status", "allowed"),
    [("candidate", False), ("rejected", False), ("passed", True), ("overridden", True), ("imported", True)],
)
def test_only_what_passed_or_was_let_through_reaches_traffic(sessions: Sessions, status: str, allowed: bool) -> None:
    with sessions.begin() as session:
        assert may_reach_traffic(get_model(session, register(session, "a", status))) is allowed


def test_a_verdict_is_given_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        version = register(session, "a")
        set_verdict(session, version, "rejected")
        set_verdict(session, version, "passed")
        assert get_model(session, version).status == "rejected"


def test_an_alias_moves_only_from_the_generation_that_was_read(sessions: Sessions) -> None:
    with sessions.begin() as session:
        old, new = register(session, "a"), register(session, "b")
        with pytest.raises(NotEnoughData, match="no model is stable"):
            stable_model(session)
        assert set_alias(session, "stable", old, expected_generation=None) == 1
        with pytest.raises(Conflict):
            set_alias(session, "stable", new, expected_generation=None)
        assert set_alias(session, "stable", new, expected_generation=1) == 2
        with pytest.raises(Conflict, match="no longer at generation 1"):
            set_alias(session, "stable", old, expected_generation=1)
        alias = get_alias(session, "stable")
        assert alias
        assert (alias.model_version, alias.generation) == (new, 2)
        assert stable_model(session).model_version == new


def test_an_override_is_kept_with_who_why_and_what_the_gates_had_said(sessions: Sessions) -> None:
    with sessions.begin() as session:
        version = register(session, "a")
        fail = GateResult(gate="forgetting", verdict=Verdict.FAIL, reason="fell", measurements={"x": 1.5})
        add_evaluations(session, version, None, [fail])
        add_evaluations(session, version, None, [fail])
        assert list_evaluations(session, version) == [fail]
        set_verdict(session, version, "rejected")
        override_gates(session, version, "ann", "a drill of the rollback", NOW)
        assert get_model(session, version).status == "overridden"
        row = session.scalars(select(AuditRow)).one()
        assert (row.actor, row.action, row.subject, row.reason) == (
            "ann",
            "override_gates",
            version,
            "a drill of the rollback",
        )
        assert row.detail == {"status_before": "rejected", "gates": {"forgetting": "fail"}}


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        pytest.param("rejected", "  ok ", "too short", id="no real reason"),
        pytest.param("passed", "it should go out anyway", "is passed", id="nothing to override"),
        pytest.param("overridden", "it should go out again", "is overridden", id="done already"),
    ],
)
def test_an_override_needs_a_reason_and_something_to_override(
    sessions: Sessions, status: str, reason: str, words: str
) -> None:
    with sessions.begin() as session:
        version = register(session, "a", status)
        with pytest.raises(Conflict, match=words):
            override_gates(session, version, "ann", reason, NOW)
        assert session.scalars(select(AuditRow)).all() == []


def test_a_model_of_ones_own_is_overridden_into_a_rollout_with_an_audit_row(sessions: Sessions) -> None:
    with sessions.begin() as session:
        version = register(session, "a", "imported")
        override_gates(session, version, "ann", "our vendor's new model", NOW)
        assert get_model(session, version).status == "overridden"
        assert session.scalars(select(AuditRow)).one().detail["status_before"] == "imported"


def test_a_changed_or_removed_audit_row_is_found(sessions: Sessions) -> None:
    with sessions.begin() as session:
        rows = [append_audit(session, "ann", "try", f"thing {k}", "because", {"k": k / 3}, NOW) for k in range(4)]
        assert first_broken(session) is None
        ids = [row.audit_id for row in rows]
    with sessions() as session:
        session.execute(update(AuditRow).where(AuditRow.audit_id == ids[1]).values(reason="another"))
        assert first_broken(session) == ids[1]
    with sessions() as session:
        session.delete(session.get(AuditRow, ids[2]))
        session.flush()
        assert first_broken(session) == ids[3]


def test_writers_of_the_audit_log_wait_for_each_other(sessions: Sessions) -> None:
    """Two transactions at once would otherwise both continue the same row."""
    from threading import Thread

    with sessions() as first:
        append_audit(first, "ann", "one", "x", "because", {}, NOW)

        def write_second() -> None:
            with sessions.begin() as second:
                append_audit(second, "bob", "two", "x", "because", {}, NOW)

        thread = Thread(target=write_second)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        first.commit()
        thread.join(10)
    with sessions() as session:
        assert first_broken(session) is None
        assert [row.actor for row in session.scalars(select(AuditRow).order_by(AuditRow.audit_id))] == ["ann", "bob"]
