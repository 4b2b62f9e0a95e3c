"""Commands of the stack: up, down, restart, status, doctor, migrate, freeze, unfreeze."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx
from sqlalchemy.exc import OperationalError

from hone.cli.context import (
    ENVIRONMENT_FILE,
    STATE_FILE,
    actor_option,
    current_settings,
    explained,
    json_option,
    reason_option,
    transaction,
    utc_now,
)
from hone.cli.output import show_json, table
from hone.cli.overview_text import lines
from hone.errors import ConfigError
from hone.local.checkout import checkout
from hone.store.engine import migrate as migrate_schema
from hone.store.overview import overview
from hone.store.switches import set_switch

DEMO_STATE_FILE = Path("var/demo/stack.json")


@click.command()
@click.option("--mode", type=click.Choice(["observe", "active"]), default="observe", show_default=True)
@click.option("--config", type=click.Path(path_type=Path), default=Path("configs/hone.toml"), show_default=True)
@click.option("--airflow/--no-airflow", default=True, show_default=True, help="The four Airflow components and the UI.")
def up(mode: str, config: Path, airflow: bool) -> None:
    """Start the whole stack here and leave it running; `hone down` stops it.

    It only observes (collects, shows pairs, trains nothing, touches no traffic) unless --mode active is given. Its
    addresses and keys are kept in var/run/stack.env, where later commands in this folder find them.
    """
    checkout()
    require_local()
    from hone.local.up import start_stack

    start_stack(mode=mode, config=config, with_airflow=airflow, say=click.echo)


@click.command()
def down() -> None:
    """Stop what `hone up` or an interrupted demo left; data stays."""
    require_local()
    from hone.local.stopping import down as stop_stack
    from hone.local.stopping import patience

    stopped: list[str] = []
    for path in (STATE_FILE, DEMO_STATE_FILE):
        if wait_s := patience(path):
            click.echo(f"the programs end; what is in flight may take up to {wait_s:g} s …")
        stopped += stop_stack(path)
    ENVIRONMENT_FILE.unlink(missing_ok=True)
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.argument("programs", nargs=-1, required=True)
def restart(programs: tuple[str, ...]) -> None:
    """Stop programs of the stack that runs here, and start them again with the settings of now.

    PROGRAMS are names as `hone status` shows them: ingest, pairs, gateway, runtime, controller, monitor. They read the
    configuration file anew, and take over what this shell sets (HONE_INGEST__STREAMS=… hone restart ingest). One that
    has ended is started. Nothing acknowledged is lost. If a name or a setting is wrong nothing is stopped: exit code 2.
    """
    require_local()
    from hone.local.restart import restart_programs

    try:
        restart_programs(programs, click.echo)
    except ConfigError as error:
        click.secho(f"hone: {error}; nothing was stopped", fg="red", err=True)
        raise SystemExit(2) from None
    except OperationalError as error:
        raise explained(error) from None


def require_local() -> None:
    """Raise ConfigError where the parts of the local stack are not installed (a bare wheel)."""
    try:
        import psutil  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("the local stack is not installed: pip install 'hone[local]', and use a checkout") from None


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show each part and its health, how far the next retraining is, and the live rollout."""
    settings = current_settings()
    parts, now = part_rows(), utc_now()
    if not as_json:
        table(parts, False, "no local stack runs here (`hone up` starts one)")
        for part in parts:
            if part["health"] == "dead":
                click.secho(ended_text(part), fg="red")
        click.echo()
    with transaction(settings) as session:
        facts = overview(session, settings, now)
    if as_json:
        show_json({"parts": parts, **facts})
    else:
        click.echo("\n".join(lines(facts, now)))


def part_rows() -> list[dict[str, Any]]:
    """Return one row for each program of the local stack: name, health, address, log."""
    if not STATE_FILE.exists():
        return []
    from hone.local.stack_state import read_state

    state = read_state(STATE_FILE)
    return [
        {
            "part": program.name,
            "health": health(program.health_url) if program.process.find() else "dead",
            "address": program.address,
            "log": program.log,
        }
        for program in (state.programs if state else ())
    ]


def ended_text(part: Mapping[str, Any]) -> str:
    """Say that a program has ended, and its last words, which mostly say what to do."""
    from hone.local.processes import tail
    from hone.local.restart import RESTARTABLE

    words = tail(Path(part["log"]), 1).strip() or "its log is empty"
    remedy = f"`hone restart {part['part']}`" if part["part"] in RESTARTABLE else "`hone down`, then `hone up`"
    return f"{part['part']} has ended: {words}\n  when that is repaired: {remedy}"


def health(url: str) -> str:
    """Return `ok`, `up` where nothing can be asked, or what is wrong."""
    if not url:
        return "up"
    try:
        code = httpx.get(url, timeout=2, trust_env=False).status_code
    except httpx.TransportError as error:
        return f"no answer ({type(error).__name__})"
    return "ok" if code < 300 else f"HTTP {code}"


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine and the configuration; every problem comes with its remedy.

    Exit code 1 if there is any problem.
    """
    from hone.cli.doctor import examine

    findings = examine()
    table(findings, as_json, "")
    if any(row["state"] == "problem" for row in findings):
        raise SystemExit(1)


@click.command()
def migrate() -> None:
    """Bring the database schema to this version; safe to run from many places at once."""
    migrate_schema(current_settings().database_url)
    click.echo("the schema is up to date")


@click.command()
@reason_option
@actor_option
def freeze(reason: str, actor: str) -> None:
    """Stop retraining and rollouts everywhere at once; feedback is still collected."""
    with transaction(current_settings()) as session:
        set_switch(session, "freeze", True, actor=actor, reason=reason, now=utc_now())
    click.echo("frozen: no retraining starts, live canaries go to weight 0; `hone unfreeze` ends it")


@click.command()
@reason_option
@actor_option
def unfreeze(reason: str, actor: str) -> None:
    """Let retraining and rollouts go on."""
    with transaction(current_settings()) as session:
        set_switch(session, "freeze", False, actor=actor, reason=reason, now=utc_now())
    click.echo("no longer frozen")


commands = (up, down, restart, status, doctor, migrate, freeze, unfreeze)
