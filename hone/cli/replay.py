"""`hone replay`: recorded conversations through the live gateway, with a bar and an account at the end."""

from functools import partial
from pathlib import Path

import click
from rich.progress import Progress

from hone.cli.context import current_settings, json_option, transaction
from hone.cli.output import duration, facts, progress, show_json, table
from hone.replay.account import Account
from hone.replay.play import Sent
from hone.replay.run import Request, Watcher, describe_scripts, read_scripts
from hone.replay.run import replay as run_replay


class Bar(Watcher):
    """Shows the progress on a rich bar."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def begin(self, num_scripts: int, num_before: int) -> None:
        """Start the bar where an earlier run ended."""
        self.before = num_before
        self.bar.reset(self.bar.task_ids[0], total=num_scripts, completed=num_before)

    def played(self, sent: Sent) -> None:
        """Advance."""
        self.bar.update(self.bar.task_ids[0], completed=self.before + sent.num_played)

    def waiting(self, num_waiting: int) -> None:
        """Say what is still on its way."""
        text = f"storing ({num_waiting} to go)" if num_waiting else "stored"
        self.bar.update(self.bar.task_ids[0], description=text)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--limit", type=click.IntRange(min=1), help="At most so many conversations, drawn by the seed.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Conversations begun a second.")
@click.option("--seed", default=0, show_default=True, help="Another seed is another crowd of people.")
@click.option("--in-flight", default=16, show_default=True, type=click.IntRange(1, 100), help="People at a time.")
@click.option("--deadline", default=60.0, show_default=True, help="Seconds to wait for Postgres at the end.")
@click.option("--host", default="127.0.0.1", show_default=True, help="This machine's address, as the gateway sees it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@json_option
def replay(
    file: Path,
    limit: int | None,
    rate: float | None,
    seed: int,
    in_flight: int,
    deadline: float,
    host: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run recorded conversations through the live gateway, as a real client would.

    A small server here gives the file's own answers; the gateway gets it as upstream `recorded` (track `replay`, kept
    out of rollouts and rewards). People rate as the file's judges did, with some noise. Each row's licence travels
    along: what is not permissive never enters a training dataset. Running it again sends only what is not stored yet.
    Exit code 1 if anything that was sent is neither stored nor a dead letter.
    """
    request = Request(file, limit, rate, seed, in_flight, deadline, host)
    if dry_run:
        return show_json(describe_scripts(read_scripts(request))) if as_json else show_plan(request)
    settings = current_settings()
    try:
        with progress(1, f"replaying {file.name}") as bar:
            account = run_replay(settings, request, partial(transaction, settings), Bar(bar))
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on where this one has ended", err=True)
        raise
    show_json(account.as_json()) if as_json else show_account(account)
    if account.differences:
        raise SystemExit(1)


def show_plan(request: Request) -> None:
    """Print what would be sent."""
    plan = describe_scripts(read_scripts(request))
    facts({name: plan[name] for name in ("conversations", "answers", "events")})
    click.echo()
    table(plan["licenses"], False, "")
    click.echo("\nthe first of them:")
    for row in plan["first"]:
        click.echo(f"  {row['row']}: {' → '.join(row['steps'])}")
    click.echo("\ndry run: nothing was sent")


def show_account(account: Account) -> None:
    """Print what was sent against what is stored."""
    earlier = f" ({account.num_before} more were stored by an earlier run)" if account.num_before else ""
    click.echo(f"{account.num_played} conversations in {duration(account.seconds)}{earlier}\n")
    sent = {"answers": (account.num_answers, account.num_answers_stored, account.num_answers_refused)}
    for kind, number in sorted(account.events_sent.items()):
        sent[kind] = (number, account.events_stored[kind], account.events_refused[kind])
    table(
        [dict(zip(("what", "sent", "stored", "dead_letters"), (k, *v), strict=True)) for k, v in sent.items()],
        False,
        "",
    )
    click.echo()
    table([{"pairs_from": source, "pairs": number} for source, number in account.pairs.items()], False, "no pair yet")
    click.echo()
    table(account.licenses, False, "nothing is stored")
    click.echo()
    for difference in account.differences:
        click.secho(f"difference: {difference}", fg="red", err=True)
    if not account.differences:
        click.secho("everything is accounted for", fg="green")
