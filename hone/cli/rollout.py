"""Commands of live traffic: what a person plans, starts, sees and decides of rollouts."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.live import Live
from sqlalchemy.orm import Session

from hone.cli.breakglass import break_glass
from hone.cli.context import (
    Verbs,
    actor_option,
    current_settings,
    json_option,
    limit_option,
    read_uuid,
    reason_option,
    transaction,
    utc_now,
)
from hone.cli.output import duration, show_json, table, working
from hone.cli.overview_text import evidence_text, held_text, late_text, past_text, place_text
from hone.cli.rollout_view import NO_EVIDENCE, duels_text, view
from hone.errors import ConfigError, Conflict
from hone.rollout import FINAL, Action, Ledger, Policy, parse_policy
from hone.rollout_plan import days_to_decide, smallest_lift
from hone.settings import Settings, read_toml
from hone.store.audit import append_audit
from hone.store.models import stable_model
from hone.store.overview import describe_freeze, describe_rollout, goal_traffic
from hone.store.rollout_ledger import list_entries, next_entry
from hone.store.rollout_units import count_late
from hone.store.rollouts import (
    create_rollout,
    get_rollout,
    list_rollouts,
    list_transitions,
    live_rollout,
    request_action,
)
from hone.store.tables import RolloutRow

LIFTS = (0.02, 0.05, 0.10)
TRAFFIC_WINDOW = timedelta(days=7)
MIN_RATED = 30
"""People below whom neither their number a day nor their mean says much: of 30, the mean is off by up to 18 points."""
WATCH_INTERVAL_S = 2.0

rollout_argument = click.argument("rollout_id", required=False)


@click.group(cls=Verbs)
def rollout() -> None:
    """Rollouts: plan, start, approve, list, ledger, status, watch, pause, resume, promote, rollback."""


@rollout.command()
@click.option("--policy", type=click.Path(path_type=Path), help="Default: [rollout] policy.")
@click.option(
    "--lift", "lifts", type=float, multiple=True, help="True advantage, .05 is five points; default .02 .05 .10."
)
@click.option("--users-per-day", type=float, help="Users a day who rate; default: those of the last 7 days.")
@click.option("--base-rate", type=float, help="Mean outcome of stable, 0 to 1; default: that of the last 7 days.")
@click.option("--alpha", type=float, help="Level of the rollout; default: what the ledger would give it now.")
@json_option
def plan(
    policy: Path | None,
    lifts: tuple[float, ...],
    users_per_day: float | None,
    base_rate: float | None,
    alpha: float | None,
    as_json: bool,
) -> None:
    """Say how many days a rollout will take at today's traffic, by simulating its own test."""
    settings = current_settings()
    rules = with_level(settings, parse_policy(read_toml(policy or settings.rollout.policy)), alpha)
    users, rate = traffic(settings, rules, users_per_day, base_rate)
    possible = possible_lifts(lifts, rate)
    with working("simulating rollouts …"):
        rows = [forecast(rules, users, rate, lift) for lift in possible]
        smallest = smallest_lift(rules, rated_users_per_day=users, base_rate=rate)
    if as_json:
        facts = {"users_per_day": users, "base_rate": rate, "goal": rules.goal, "alpha": rules.alpha}
        return show_json({**facts, "smallest_lift": smallest, "forecasts": rows})
    horizon = f"{rules.horizon_pairs} pairs of users or {duration(rules.horizon_s)}"
    click.echo(f"{users:.4g} users a day rate {rules.goal}, mean {rate:.3f}; undecided after {horizon}: rolled back")
    click.echo(f"promoted at an e-value of {1 / rules.alpha:.0f} (alpha {rules.alpha:.2g})\n")
    table([plan_row(row) for row in rows], False, "a canary cannot be better than a mean of 1")
    if smallest is None:
        return click.echo("\nno lift is found in 80 % of rollouts at this traffic: fewer stages, or a longer horizon")
    click.echo(f"\nsmallest lift that 80 % of rollouts find: {smallest:+.1%}")


def with_level(settings: Settings, rules: Policy, alpha: float | None) -> Policy:
    """Return the policy with the level that was given, else the ledger's for a rollout that starts now.

    Raises:
        ConfigError: the level that was given is none.
    """
    if alpha is None:
        with transaction(settings) as session:
            alpha = next_entry(session, rules, utc_now()).alpha
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha {alpha}: give a number between 0 and 1, such as 0.05")
    return rules.model_copy(update={"alpha": alpha})


def traffic(
    settings: Settings, rules: Policy, users_per_day: float | None, base_rate: float | None
) -> tuple[float, float]:
    """Return users a day and stable's mean: as given, else as stored.

    Raises:
        ConfigError: fewer than MIN_RATED people have rated, and the options do not say what to expect.
    """
    users, rate = users_per_day, base_rate
    if users is None or rate is None:
        with transaction(settings) as session:
            seen = goal_traffic(session, rules.goal, TRAFFIC_WINDOW, utc_now())
        if seen.num_users < MIN_RATED or seen.mean is None:
            rated = f"of the {MIN_RATED} people that it takes, {seen.num_users} rated {rules.goal} in the last 7 days"
            raise ConfigError(f"not enough traffic yet to tell: {rated}; give --users-per-day and --base-rate")
        users, rate = users if users is not None else seen.users_per_day, rate if rate is not None else seen.mean
    if users <= 0 or not 0 <= rate <= 1:
        raise ConfigError(f"--users-per-day {users} and --base-rate {rate}: give a number above 0 and a share, 0 to 1")
    return users, rate


def possible_lifts(asked: Sequence[float], rate: float) -> list[float]:
    """Return the lifts that were asked for, else the usual ones that a mean of `rate` leaves room for.

    Raises:
        ConfigError: a canary cannot have one of those that were asked for.
    """
    for lift in asked:
        if not -1 < lift < 1:
            raise ConfigError(f"--lift {lift:g} is no share: five points are 0.05")
        if not 0 <= rate + lift <= 1:
            room = f"{-rate:.3f} to {1 - rate:+.3f}"
            raise ConfigError(f"--lift {lift:g}: stable's mean is {rate:.3f}, so a canary's can differ by {room}")
    return list(asked) or [lift for lift in LIFTS if rate + lift <= 1]


def forecast(rules: Policy, users: float, rate: float, lift: float) -> dict[str, Any]:
    """Return the forecast for one true lift."""
    return asdict(days_to_decide(rules, rated_users_per_day=users, lift=lift, base_rate=rate))


def plan_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a forecast in words."""
    days = {name: duration(row[key] * 86_400) if row[key] else "too rarely" for name, key in PLAN_DAYS.items()}
    return {"true_lift": f"{100 * row['lift']:+g}%", "promoted": f"{row['promoted_share']:.0%}", **days}


PLAN_DAYS = {"half_of_them_within": "median_days", "80_%_within": "p80_days"}


@rollout.command()
@click.argument("version")
@click.option("--policy", type=click.Path(path_type=Path), help="Default: [rollout] policy.")
@reason_option
@actor_option
def start(version: str, policy: Path | None, reason: str, actor: str) -> None:
    """Start the rollout of a version that passed its gates (or was overridden) against the stable one."""
    settings, now = current_settings(), utc_now()
    with transaction(settings) as session:
        rollout_id = create_rollout(
            session,
            canary_version=version,
            stable_version=stable_model(session).model_version,
            policy=read_toml(policy or settings.rollout.policy),
            started_by=actor,
            now=now,
        )
        append_audit(session, actor, "rollout.start", f"rollout:{rollout_id}", reason, {"canary": version}, now)
    click.echo(f"rollout {rollout_id} of {version} is created; the controller takes it from here")
    if settings.mode != "active":
        click.echo(f"mode is {settings.mode}: it gets no traffic before HONE_MODE=active", err=True)


@rollout.command(name="list")
@limit_option
@json_option
def list_(limit: int, as_json: bool) -> None:
    """List rollouts, the newest first."""
    names = ("rollout_id", "canary_version", "phase", "stage", "weight", "created_at", "ended_at", "reason")
    with transaction(current_settings()) as session:
        rows = [{name: getattr(row, name) for name in names} for row in list_rollouts(session, limit=limit)]
    table(rows, as_json, "no rollout yet")


@rollout.command()
@click.option("--policy", type=click.Path(path_type=Path), help="Default: [rollout] policy.")
@limit_option
@json_option
def ledger(policy: Path | None, limit: int, as_json: bool) -> None:
    """Show what each rollout may risk to promote wrongly, and what the next one will get."""
    settings, now = current_settings(), utc_now()
    rules = parse_policy(read_toml(policy or settings.rollout.policy))
    with transaction(settings) as session:
        following, entries = next_entry(session, rules, now), list_entries(session, limit=limit)
    if as_json:
        return show_json({"next": asdict(following), "entries": entries})
    click.echo(f"{LEDGERS[rules.ledger].format(budget=rules.alpha)}\n")
    table([ledger_row(entry) for entry in entries], False, "no rollout yet")
    need = f"promoted at an e-value of {1 / following.alpha:.0f}"
    click.echo(f"\nthe next one is number {following.number}: alpha {following.alpha:.2g}, {need}")


LEDGERS = {
    Ledger.E_LOND: "e-LOND: of all promotions by the test an expected share of at most {budget:.0%} is wrong",
    Ledger.MONTHLY: "monthly: the chance of any wrong promotion in a month is at most {budget:.0%}",
    Ledger.FIXED: "fixed: each rollout promotes wrongly with a chance of at most {budget:.0%}, however many there are",
}


def ledger_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry in words."""
    return {
        "number": entry["number"],
        "canary": entry["canary"],
        "started": entry["created_at"],
        "alpha": f"{entry['alpha']:.2g}",
        "needs": f"{1 / entry['alpha']:.0f}",
        "e_value": entry["e_value"],
        "phase": entry["phase"],
        "proven": entry["proven"],
    }


@rollout.command()
@rollout_argument
def watch(rollout_id: str | None) -> None:
    """Watch a rollout live: the band of effects, how far each proof is, users, checks; until it has ended."""
    settings = current_settings()
    with suppress(KeyboardInterrupt), Live(console=Console(), auto_refresh=False) as live:  # Ctrl-C: seen enough
        while True:
            with transaction(settings) as session:
                found = describe_with_history(session, settings, rollout_id)
            live.update(view(found, utc_now()), refresh=True)
            if found["phase"] in FINAL:
                return
            time.sleep(WATCH_INTERVAL_S)


@rollout.command()
@rollout_argument
@click.option("--watch", is_flag=True, help="Look again every two seconds, until the rollout has ended.")
@json_option
def status(rollout_id: str | None, watch: bool, as_json: bool) -> None:
    """Show a rollout's place, evidence and transitions; default: the live one, else the last."""
    settings = current_settings()
    shown: object = None
    with suppress(KeyboardInterrupt):
        while True:
            with transaction(settings) as session:
                found = describe_with_history(session, settings, rollout_id)
            text = "\n".join(status_lines(found))
            if text != shown:
                show_json(found) if as_json else click.echo(text + "\n" if watch else text)
            shown = text
            if not watch or found["phase"] in FINAL:
                return
            time.sleep(WATCH_INTERVAL_S)


def describe_with_history(session: Session, settings: Settings, rollout_id: str | None) -> dict[str, Any]:
    """Return a rollout with its transitions. Raises Conflict where there is none."""
    if rollout_id is not None:
        row: RolloutRow | None = get_rollout(session, read_uuid(rollout_id, "rollout"))
    else:
        row = live_rollout(session) or next(iter(list_rollouts(session, limit=1)), None)
    if row is None:
        raise Conflict("no rollout yet: `hone rollout start VERSION`, or wait for a retraining")
    names = ("epoch", "created_at", "from_phase", "to_phase", "stage", "weight", "actor", "reason")
    history = [{name: getattr(t, name) for name in names} for t in list_transitions(session, row.rollout_id)]
    levels = {"alpha_harm": row.policy["alpha_harm"], "alpha_check": row.policy["alpha_check"]}
    levels["alpha_guard"] = row.policy["guardrails"]["alpha_guard"]
    late = count_late(session, row.rollout_id, row.policy["goal"])
    holds = {"mode": settings.mode, "freeze": describe_freeze(session), "late": late}
    return {**(describe_rollout(row) or {}), **levels, **holds, "evidence": row.evidence, "transitions": history}


def status_lines(found: dict[str, Any]) -> list[str]:
    """Return a rollout in words."""
    last = [found["ended_at"]] if found["ended_at"] else []
    lines = [f"rollout   {found['rollout_id']}", f"place     {place_text(found, *(last or [utc_now()]))}"]
    lines += [f"held      {held}" for held in [held_text(found)] if held]
    lines += [f"evidence  {evidence_text(found)}", f"stable    {found['stable']}"]
    lines += [f"duels     {said}{NO_EVIDENCE}" for said in [duels_text(found["evidence"])] if said]
    lines += [f"late      {late}" for late in [late_text(found["late"])] if late]
    lines += [*(f"unkeyed   {past}" for past in [past_text(found["evidence"])] if past), ""]
    for change in found["transitions"]:
        lines.append(
            f"{change['created_at']:%H:%M:%S}  {change['from_phase']} → {change['to_phase']} at {change['weight']:.0%}"
            f" · {change['actor']}: {change['reason']}"
        )
    return lines


def act(rollout_id: str | None, action: Action, actor: str, reason: str) -> None:
    """Do what a person asks of the rollout, or of the live one."""
    with transaction(current_settings()) as session:
        found = find(session, rollout_id)
        request_action(session, found, action, actor=actor, reason=reason, now=utc_now())
    click.echo(f"rollout {found}: {action} is written; the controller carries it out within seconds")


def find(session: Session, rollout_id: str | None) -> UUID:
    """Return the id that was given, or that of the live rollout. Raises Conflict where none is live."""
    if rollout_id is not None:
        return read_uuid(rollout_id, "rollout")
    live = live_rollout(session)
    if live is None:
        raise Conflict("no rollout is live: `hone rollout list` shows those that have ended")
    return live.rollout_id


@rollout.command()
@rollout_argument
@reason_option
@actor_option
def approve(rollout_id: str | None, reason: str, actor: str) -> None:
    """Let a rollout meet traffic whose policy asks for a person's approval."""
    act(rollout_id, Action.APPROVE, actor, reason)


@rollout.command()
@rollout_argument
@reason_option
@actor_option
def pause(rollout_id: str | None, reason: str, actor: str) -> None:
    """Hold the canary's weight; only safety moves it, downwards."""
    act(rollout_id, Action.PAUSE, actor, reason)


@rollout.command()
@rollout_argument
@reason_option
@actor_option
def resume(rollout_id: str | None, reason: str, actor: str) -> None:
    """Let a paused rollout go on."""
    act(rollout_id, Action.RESUME, actor, reason)


@rollout.command()
@rollout_argument
@reason_option
@actor_option
def promote(rollout_id: str | None, reason: str, actor: str) -> None:
    """Make the canary stable now, without waiting for the test; in a reverse watch, keep the new model."""
    act(rollout_id, Action.PROMOTE, actor, reason)


@rollout.command()
@rollout_argument
@click.option("--break-glass", "glass", is_flag=True, help="Straight to every router; needs no database.")
@reason_option
@actor_option
def rollback(rollout_id: str | None, glass: bool, reason: str, actor: str) -> None:
    """Take the canary out of traffic; in a reverse watch, go back to the former model.

    With --break-glass the order goes over HTTP to every router (HONE_ROUTER_URLS, else HONE_GATEWAY_URL), wins over
    every plan and is remembered there for ever; the database hears of it from the controller. It needs HONE_ADMIN_KEY.
    """
    if not glass:
        return act(rollout_id, Action.ROLLBACK, actor, reason)
    given = read_uuid(rollout_id, "rollout") if rollout_id else None
    results = break_glass(current_settings(), given, f"{actor}: {reason}")
    table([asdict(result) for result in results], False, "")
    if not all(result.done for result in results):
        raise Conflict(
            "not every router has it: repeat for those that failed; their canary ends when their plan expires"
        )


commands = (rollout,)
