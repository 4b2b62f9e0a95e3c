"""Jars that a pom.xml names, fetched with `mvn` into a folder of their own, all of them or none."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from uuid import uuid4

from hone.errors import HoneError

FETCH_TIMEOUT_S = 600.0


def pom_hash(pom: Path) -> str:
    """Return what marks a folder as holding the jars of this file."""
    return hashlib.sha256(pom.read_bytes()).hexdigest()


def jars_available(pom: Path, libs: Path) -> bool:
    """Say whether `libs` holds the complete jars of the present `pom` (any complete set where there is no pom)."""
    done = libs / "DONE"
    return done.exists() and (not pom.exists() or done.read_text() == pom_hash(pom))


def fetch_jars(pom: Path, target: Path, what: str) -> bool:
    """Fetch the jars into `target`; return False, and do nothing, where they are there. `what` is for messages.

    Raises:
        HoneError: Maven is missing or failed; the message holds its last lines. `target` is unchanged.
    """
    if jars_available(pom, target):
        return False
    if not shutil.which("mvn"):
        raise HoneError(f"cannot fetch the {what} jars: no `mvn` on the path; install Maven, or do without {what}")
    draft = target.with_name(f"{target.name}.{uuid4().hex[:8]}")
    try:
        _run_maven(pom, draft, what)
        (draft / "DONE").write_text(pom_hash(pom))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _run_maven(pom: Path, target: Path, what: str) -> None:
    command = ["mvn", "-q", "-B", "-C", "-f", str(pom), "dependency:copy-dependencies"]
    try:
        result = subprocess.run(
            [*command, f"-DoutputDirectory={target.absolute()}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise HoneError(f"Maven did not fetch the {what} jars within {FETCH_TIMEOUT_S:g} s; try again") from None
    if result.returncode:
        last = "\n".join(result.stdout.splitlines()[-8:])
        raise HoneError(f"Maven could not fetch the {what} jars (exit code {result.returncode}):\n{last}")
