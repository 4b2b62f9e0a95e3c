"""The command line as tests run it, and what it leaves in the audit log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from hone.cli import cli
from hone.store.audit import first_broken
from hone.store.tables import AuditRow
from tests.support.gateway import IDENTITY_KEY, KEY, TOKEN_KEYS

Sessions = sessionmaker[Session]
Run = Callable[..., Result]


def make_run(store_url: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Run:
    """`run("pairs", "--json")` runs the command; it ends well unless `code` says otherwise, never in a traceback."""
    monkeypatch.chdir(directory)
    for name, value in {
        "HONE_DATABASE_URL": store_url,
        "HONE_IDENTITY_KEY": IDENTITY_KEY,
        "HONE_TOKEN_KEYS": TOKEN_KEYS,
        "HONE_ADMIN_KEY": KEY,
    }.items():
        monkeypatch.setenv(name, value)

    def run(*words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    return run


def read(result: Result) -> Any:
    return json.loads(result.stdout)


def audit(sessions: Sessions) -> list[tuple[str, str, str]]:
    """Action, reason and actor of each row; the chain of hashes must hold."""
    with sessions() as session:
        assert first_broken(session) is None
        return [
            (row.action, row.reason, row.actor) for row in session.scalars(select(AuditRow).order_by(AuditRow.audit_id))
        ]
