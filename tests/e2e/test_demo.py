"""`make demo`, as a newcomer runs it: every promise of its report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hone.local.stopping import living

ROOT = Path(__file__).parents[2]
HOME = ROOT / "var" / "demo"


@pytest.mark.airflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_loop_turns_and_keeps_every_promise() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"], cwd=ROOT, capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    report = json.loads((HOME / "report.json").read_text())
    assert report["promoted"]
    assert report["win_rate_low"] > 0.5
    assert report["harmful_stopped_by_gates"]
    assert report["harmful_rolled_back"]
    assert report["events_sent"] > 1000
    assert report["events_sent"] == report["events_stored"] + report["dead_letters"]
    assert report["cpu_seconds"] <= 500
    assert report["peak_pss_mb"] < 3500
    assert report["broker"]
    assert {"claim", "train and evaluate", "promotion"} <= set(report["feedback_to_serving_seconds"])
    assert all((HOME / name).stat().st_size > 1000 for name in ("report.html", "report.png"))
    assert living(HOME / "stack.json") == []
