"""`python -m training run SPEC`: exit code 0 done, 2 wrong input, 3 the run itself failed, 1 a bug."""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import click

from hone.cli.context import current_settings
from hone.errors import ConfigError, Conflict, HoneError, NotEnoughData
from hone.overrides import read_overrides
from training.jobs import check_complete, spec_of
from training.spec import Method, RunSpec, load_job, load_spec, needs_bitsandbytes
from training.stages import split_stages

WRONG_INPUT = (ConfigError, NotEnoughData, Conflict)
"""A spec or a setting, the rows, or a name that the database does not know."""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}
PEFT_ASKS = "`is_gradient_checkpointing` is deprecated"
"""Peft 0.21 reads an attribute under its old name, which nobody who trains can change."""


def main(arguments: list[str] | None = None) -> int:
    """Do one command and return the exit code."""
    options = parser().parse_args(arguments)
    set_logging(options)
    # Read when torch and the hub's client are imported, which happens below.
    os.environ.update({**QUIET, **{key: value for key, value in os.environ.items() if key in QUIET}})
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a bar in a log is noise
    warnings.filterwarnings("ignore", PEFT_ASKS, FutureWarning, r"transformers\.modeling_utils")
    try:
        {"check": check, "recipe": recipe, "run": run, "sweep": sweep}[options.command](options)
    except HoneError as error:
        click.secho(f"hone: {error}", fg="red", err=True)
        return 2 if isinstance(error, WRONG_INPUT) else 3
    return 0


def set_logging(options: argparse.Namespace) -> None:
    """Log everything with its time where a log file keeps it, and to a person only what they must know."""
    if options.command in ("sweep", "check") or getattr(options, "spec", Path()).suffix == ".toml":
        logging.basicConfig(level=logging.WARNING, format="hone: %(message)s")
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("alembic").setLevel(logging.WARNING)


def parser() -> argparse.ArgumentParser:
    """Return the commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate; goes on where an earlier try ended")
    run.add_argument("spec", type=Path, help="a spec (TOML), or the job.json that a retraining wrote")
    run.add_argument("--dry-run", action="store_true", help="show what would be trained, and stop")
    run.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of text")
    recipe = commands.add_parser("recipe", help="several runs, each from what an earlier one made")
    recipe.add_argument("file", type=Path, help="configs/recipes/*.toml")
    sweep = commands.add_parser("sweep", help="one method with other levels of some keys; goes on where it was")
    sweep.add_argument("file", type=Path, help="configs/sweeps/*.toml")
    sweep.add_argument("--dry-run", action="store_true", help="show what would be tried, and stop")
    sweep.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of text")
    check = commands.add_parser("check", help="check the configured spec of a method")
    check.add_argument("method", choices=get_args(Method))
    for command in (run, recipe, sweep, check):
        command.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    return parser


def check(options: argparse.Namespace) -> None:
    """Print the resolved spec. Raises ConfigError where it is wrong."""
    own, earlier = split_stages(read_overrides(options.changes))
    for method, keys in earlier.items():
        check_complete(spec_of(current_settings(), cast(Method, method), keys))
    spec = spec_of(current_settings(), options.method, own)
    check_complete(spec)
    print(spec.model_dump_json(indent=1))


def recipe(options: argparse.Namespace) -> None:
    """Do a recipe's stages. Raises like `run_recipe`."""
    from training.recipe import run_recipe

    print(json.dumps(run_recipe(current_settings(), options.file, read_overrides(options.changes)), indent=1))


def sweep(options: argparse.Namespace) -> None:
    """Do a sweep's trials, or show them. Raises like `run_sweep`."""
    from training.sweep.run import describe_sweep, run_sweep
    from training.sweep.table import load_sweep
    from training.sweep.view import show_plan, show_result

    found = load_sweep(options.file, read_overrides(options.changes))
    act, show = (describe_sweep, show_plan) if options.dry_run else (run_sweep, show_result)
    show_as(options, act(current_settings(), found), show)


def show_as(options: argparse.Namespace, found: Mapping[str, Any], show: Callable[[Mapping[str, Any]], None]) -> None:
    """Print what was found as JSON, or for people."""
    if options.as_json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def run(options: argparse.Namespace) -> None:
    """Do a job, or what a spec says. Raises like `run_job`."""
    if options.spec.suffix == ".json":
        job = load_job(options.spec)
        prepare_imports(job.spec)
        from training.run import run_job

        return run_job(job)
    spec = load_spec(options.spec, read_overrides(options.changes))
    prepare_imports(spec)
    from training.start import describe, run_spec
    from training.view import show_plan, show_result

    act, show = (describe, show_plan) if options.dry_run else (run_spec, show_result)
    show_as(options, act(current_settings(), spec), show)


def prepare_imports(spec: RunSpec) -> None:
    """Set what torch and peft look at when they are imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
    if spec.launch.world == 1:
        # One process that sees several GPUs is wrapped in DataParallel, which TRL refuses.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not needs_bitsandbytes(spec):
        # peft imports it wherever it is installed, which takes a second: such a run finds none.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
