"""The whole loop, several times in a row: `python -m benchmarks.loop --json [--runs N] [--full]`.

Each run is one `make demo` in a fresh database and broker; the base model comes from the cache after the first.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result import Target, report, say

REPORT = Path("var/demo/report.json")


def run_once(number: int, runs: int) -> dict[str, Any] | None:
    """Run the demo; return its report, or None where it failed."""
    say(f"run {number + 1} of {runs}")
    REPORT.unlink(missing_ok=True)
    code = subprocess.run([sys.executable, "-m", "examples.demo"], stdout=sys.stderr).returncode
    return json.loads(REPORT.read_text()) if code == 0 and REPORT.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the only output there is")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="ten runs")
    arguments = parser.parse_args()
    runs = 10 if arguments.full else arguments.runs
    reports = [run_once(number, runs) for number in range(runs)]
    passed = [found for found in reports if found]
    figures = {"runs": runs, "passed": len(passed)} | (spread(passed) if passed else {})
    targets = {"failed_runs": Target(runs - len(passed), "==", 0)}
    if passed:
        targets |= {
            "cpu_seconds": Target(max(found["cpu_seconds"] for found in passed), "<=", 500),
            "peak_pss_mb": Target(max(found["peak_pss_mb"] for found in passed), "<", 3500),
            "demo_seconds": Target(max(found["demo_seconds"] for found in passed), "<=", 360),
            "win_rate_low": Target(min(found["win_rate_low"] for found in passed), ">", 0.5),
        }
    return report(figures, targets, seeds=[1])


def spread(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return minimum, median and maximum of each figure."""
    names = ["demo_seconds", "cpu_seconds", "peak_pss_mb", "win_rate", "win_rate_low", "events_sent"]
    values = {name: [found[name] for found in reports] for name in names}
    serving = [found["feedback_to_serving_seconds"]["last feedback to promotion"] for found in reports]
    values["last_feedback_to_promotion_seconds"] = serving
    return {name: {"min": min(found), "median": median(found), "max": max(found)} for name, found in values.items()} | {
        "broker": reports[-1]["broker"]
    }


if __name__ == "__main__":
    sys.exit(main())
