"""Stops a stack when its starter is gone: `python -m hone.local.watchdog STATE_FILE [TIMEOUT_S] < pipe`."""

import sys
from pathlib import Path

from hone.local.stopping import down


def main() -> None:
    """Block until the pipe on standard input closes, then stop what the state file still names."""
    state_path, *timeout = sys.argv[1:]
    sys.stdin.buffer.read()
    down(Path(state_path), timeout_s=float(timeout[0]) if timeout else None)


if __name__ == "__main__":
    main()
