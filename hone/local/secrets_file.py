"""The local stack's secrets: made once, kept in one file that only its owner can read."""

import os
import secrets
from pathlib import Path


def local_secrets(path: Path) -> dict[str, str]:
    """Return the stack's secrets as environment variables, made at the first call and the same ever after.

    A secret that the environment already holds wins over the file.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.touch(mode=0o600)
        draft.write_text("".join(f"{name}={value}\n" for name, value in fresh_secrets().items()))
        draft.rename(path)
    stored = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {name: os.environ.get(name, value) for name, value in stored.items()}


def fresh_secrets() -> dict[str, str]:
    """Return newly drawn keys."""
    return {
        "HONE_TOKEN_KEYS": f"1:{secrets.token_hex(32)}",
        "HONE_IDENTITY_KEY": secrets.token_hex(32),
        "HONE_ADMIN_KEY": f"hone-{secrets.token_urlsafe(24)}",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__FERNET_KEY": secrets.token_urlsafe(32) + "=",
    }
