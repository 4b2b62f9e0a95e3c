"""`python -m training run JOB.json`: exit code 0 done, 2 wrong spec or data, 3 the run itself failed, 1 a bug."""

import argparse
import logging
import os
import sys
from pathlib import Path

from hone.errors import ConfigError, HoneError, NotEnoughData
from training.spec import load_job

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate one job; goes on where an earlier try ended")
    run.add_argument("job", type=Path, help="job.json, as `training.retrain` writes it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Read when torch and the hub's client are imported, which happens below.
    os.environ.update({**QUIET, **{key: value for key, value in os.environ.items() if key in QUIET}})
    try:
        job = load_job(options.job)
        os.environ.setdefault("OMP_NUM_THREADS", str(job.spec.threads))
        from training.run import run_job

        run_job(job)
    except HoneError as error:
        print(f"training failed: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | NotEnoughData) else 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
