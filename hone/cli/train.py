"""The commands train and sweep, and the check of a training spec before anything is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import click

from hone.cli.context import json_option, run_program
from hone.errors import ConfigError
from hone.local.checkout import checkout
from hone.settings import CONFIG_VARIABLE

METHODS = ("sft", "reward_model", "dpo", "kto", "ppo", "rloo", "grpo")

LAUNCHERS = ("local", "accelerate", "ray", "kubernetes", "trainjob", "slurm")


@click.command()
@click.argument("method", type=click.Choice(METHODS))
@click.option("--dataset", help="Id of a frozen or imported dataset, or a directory with train.jsonl.")
@click.option("--base", help="Registered version or model directory to start from; default: the stable model.")
@click.option(
    "--spec", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Default: configs/METHOD.toml."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Key of the training spec: lora.rank=8.")
@click.option("--launcher", type=click.Choice(LAUNCHERS), help="Where its processes run; default: the spec's.")
@click.option("--processes", type=click.IntRange(1), help="Of one machine; one for each GPU.")
@click.option("--dry-run", is_flag=True, help="Check spec, base and data, show what would be trained, and stop.")
@json_option
def train(
    method: str,
    dataset: str | None,
    base: str | None,
    spec: Path | None,
    changes: tuple[str, ...],
    launcher: str | None,
    processes: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train here and now, in the foreground; the result is judged and registered, and gets no traffic.

    Interrupted, the same command goes on from the newest whole checkpoint. Needs the checkout.
    """
    path = spec or checkout() / "configs" / f"{method}.toml"
    given = {"method": method, "dataset": dataset, "base": base, "launcher": launcher, "launch.processes": processes}
    words = [f"--set={key}={value}" for key, value in given.items() if value is not None]
    words += [f"--set={item}" for item in changes]
    run_program("training", "run", str(path), *words, *flags(dry_run, as_json))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dataset", help="Id of a frozen or imported dataset, or a directory with train.jsonl and dev.jsonl.")
@click.option("--base", help="Registered version or model directory to start from; default: the stable model.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Key of every trial's spec: epochs=1.")
@click.option("--trials", type=click.IntRange(1), help="At most so many; default: the file's, or the whole grid.")
@click.option("--dry-run", is_flag=True, help="Show trials, levels, rows and about how long, and stop.")
@json_option
def sweep(
    file: Path,
    dataset: str | None,
    base: str | None,
    changes: tuple[str, ...],
    trials: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train with other learning rates, batches, ranks …, and say which suit; FILE is such as configs/sweeps/dpo.toml.

    Interrupted, the same command goes on: what is done is not done again. Needs the checkout.
    """
    given = {"spec.dataset": dataset, "spec.base": base, "trials": trials}
    words = [f"--set={key}={value}" for key, value in given.items() if value is not None]
    words += [f"--set=spec.{item}" for item in changes]
    run_program("training", "sweep", str(file), *words, *flags(dry_run, as_json))


def flags(dry_run: bool, as_json: bool) -> list[str]:
    """Return the words of those flags that are set."""
    return [word for word, is_set in (("--dry-run", dry_run), ("--json", as_json)) if is_set]


def check_spec(method: str, changes: tuple[str, ...]) -> None:
    """Raise ConfigError where the training spec with these changes is wrong; without the checkout only a note is made.

    For `auto` the labels choose the method only when training starts, so that its changes are checked as DPO's; keys of
    an earlier stage stand under `stages.METHOD`. The spec's rules live with the trainer, which the library does not
    import.
    """
    try:
        root = checkout()
    except ConfigError:
        return click.echo("the changes are checked when training starts: no trainer is installed here", err=True)
    command = [
        sys.executable,
        "-m",
        "training",
        "check",
        "dpo" if method == "auto" else method.rpartition("+")[2],
        *(f"--set={item}" for item in changes),
    ]
    done = subprocess.run(command, cwd=root, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(done.stderr.strip().removeprefix("hone: "))


def child_environment() -> dict[str, str]:
    """Return this environment for a child in another folder: the settings file by its whole path."""
    config = os.environ.get(CONFIG_VARIABLE)
    return {**os.environ, **({CONFIG_VARIABLE: str(Path(config).absolute())} if config else {})}
