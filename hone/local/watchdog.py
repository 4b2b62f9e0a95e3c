"""Stops a stack when the process that started it is gone: `python -m hone.local.watchdog STATE_FILE < pipe`."""

import sys
from pathlib import Path

from hone.local.stopping import down


def main() -> None:
    """Block until the pipe on standard input closes, then stop what the state file still names."""
    state_path = Path(sys.argv[1])
    sys.stdin.buffer.read()
    down(state_path)


if __name__ == "__main__":
    main()
