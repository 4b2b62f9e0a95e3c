"""Commands of feedback and data: pairs, dead letters, history in and out, imports, replay, erasure, keys."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from hone.cli.archive import archive
from hone.cli.context import (
    Verbs,
    actor_option,
    current_settings,
    json_option,
    limit_option,
    reason_option,
    run_program,
    transaction,
    utc_now,
)
from hone.cli.import_file import import_file
from hone.cli.output import facts, short, show_json, table
from hone.cli.overview_text import edits_text, orphans_text
from hone.cli.replay import replay
from hone.cli.streams import backfill, mapping_option, streams, use
from hone.errors import ConfigError
from hone.ids import user_id
from hone.settings import Settings
from hone.store.audit import append_audit
from hone.store.dead_letters import (
    count_dead_letters,
    dismiss_dead_letters,
    get_dead_letter,
    list_dead_letters,
)
from hone.store.erasure import erase_user as forget
from hone.store.keys import Scope, create_key, revoke_key
from hone.store.listing import list_keys
from hone.store.overview import count_pairs, newest_pairs
from hone.store.unpaired import edits_without_pair, recent_unanswered

file_argument = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@limit_option
@json_option
def pairs(limit: int, as_json: bool) -> None:
    """Count the preference pairs by source, and show the newest.

    Edits that made none are counted by the reason, and so is feedback on answers that hone does not have. No text is
    shown.
    """
    settings = current_settings()
    with transaction(settings) as session:
        counts, newest = count_pairs(session), newest_pairs(session, limit)
        faults, orphans = edits_without_pair(session, settings.pairs), asdict(recent_unanswered(session, utc_now()))
    if as_json:
        return show_json({"sources": counts, "newest": newest, "edits_without_pair": faults, "orphans": orphans})
    table(counts, False, "no pair yet: pairs follow from feedback on two answers to the same turn, or from edits")
    for line in edits_text(faults, settings.pairs.model_dump()):
        click.echo(line)
    if orphans["num_events"]:
        click.echo(f"orphans: {orphans_text(orphans)}")
    if newest:
        click.echo()
        table(newest, False, "")


LETTER = (
    *("dead_letter_id", "reason", "detail", "topic", "partition", "offset"),
    *("created_at", "replayed_at", "dismissed_at"),
)


@click.group(cls=Verbs, name="dead-letters")
def dead_letters() -> None:
    """Messages that could not become rows: list, show, replay, dismiss.

    Each is kept with its bytes and the reason, and waits for one of these:

    \b
    of a topic    hone dead-letters show ID --body > FILE, repair FILE,
                  hone dead-letters replay ID --fixed FILE
    of a file     correct the mapping, hone backfill FILE … --again
    otherwise     hone dead-letters dismiss ID --reason …
    """  # noqa: D301  # click keeps the lines of such a paragraph


@dead_letters.command(name="list")
@click.option("--id-only", is_flag=True, help="Only the ids, one a line.")
@click.option("--reason", help="Only those of this reason.")
@click.option("--waiting", is_flag=True, help="Only those that nobody replayed or dismissed.")
@limit_option
@json_option
def dead_letters_list(id_only: bool, reason: str | None, waiting: bool, limit: int, as_json: bool) -> None:
    """List the newest dead letters, and count all by reason."""
    with transaction(current_settings()) as session:
        letters = list_dead_letters(session, reason=reason, waiting_only=waiting, limit=limit)
        rows = [{name: getattr(letter, name) for name in LETTER} for letter in letters]
        counts = count_dead_letters(session, waiting_only=waiting)
    if id_only:
        return click.echo("\n".join(str(row["dead_letter_id"]) for row in rows))
    if as_json:
        return show_json({"by_reason": counts, "newest": rows})
    table([letter_row(row) for row in rows], False, "no dead letter waits" if waiting else "no dead letter")
    if counts:
        reasons = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
        click.echo(f"\n{'waiting' if waiting else 'in all'}: {reasons} (`hone dead-letters --help`: what can be done)")


def letter_row(letter: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person looks for in a list: which, why, where, since when, and whether it waits."""
    settled = ((name, letter[f"{name}_at"]) for name in ("dismissed", "replayed"))
    state = next((f"{name} {at:%Y-%m-%d %H:%M}" for name, at in settled if at), "waits")
    is_file = letter["topic"].startswith("file:")
    place = f"{letter['topic']}:{letter['offset']}" if is_file else "{topic}/{partition}@{offset}".format(**letter)
    return {
        "id": letter["dead_letter_id"],
        "reason": letter["reason"],
        "detail": short(letter["detail"]),
        "place": place,
        "since": letter["created_at"],
        "state": state,
    }


@dead_letters.command(name="show")
@click.argument("dead_letter_id", type=int)
@click.option("--body", "only_body", is_flag=True, help="Only the message, byte for byte, to repair it in a file.")
@json_option
def dead_letters_show(dead_letter_id: int, only_body: bool, as_json: bool) -> None:
    """Show one dead letter with its message."""
    with transaction(current_settings()) as session:
        letter = get_dead_letter(session, dead_letter_id)
    if only_body:
        return click.echo(letter.body or b"", nl=False)
    names = LETTER
    found = {name: getattr(letter, name) for name in names}
    body = (letter.body or b"").decode("utf-8", "backslashreplace")
    if as_json:
        return show_json({**found, "body": body})
    facts(found)
    click.echo()
    click.echo(pretty(body))


def pretty(body: str) -> str:
    """Return JSON indented, and anything else as it is."""
    try:
        return msgspec.json.format(body, indent=2)
    except msgspec.DecodeError:
        return body


@dead_letters.command(name="replay")
@click.argument("dead_letter_ids", type=int, nargs=-1, required=True)
@click.option("--fixed", type=file_argument, help="File with the repaired message, for one id.")
@mapping_option
@click.option("--dry-run", is_flag=True, help="Only show what would be sent.")
def dead_letters_replay(
    dead_letter_ids: tuple[int, ...], fixed: Path | None, mapping: str | None, dry_run: bool
) -> None:
    """Send letters back to their topic, as they are or repaired.

    Needs the checkout. A message that ingest would refuse again is not sent. Sending one twice stores it once.
    """
    use(mapping)
    words = [word for number in dead_letter_ids for word in ("--id", str(number))]
    words += ["--fixed", str(fixed)] if fixed else []
    run_program("ingest", "replay-dead-letters", *words, *(["--dry-run"] if dry_run else []))


@dead_letters.command(name="dismiss")
@click.argument("dead_letter_ids", type=int, nargs=-1)
@click.option("--topic", help="All of this topic; of a file it is `file:NAME`.")
@click.option("--refused-for", help="All that were refused for this reason, such as not_json.")
@click.option("--all", "everything", is_flag=True, help="All that wait.")
@click.option("--undo", is_flag=True, help="Let those that were dismissed wait again.")
@click.option("--yes", is_flag=True, help="Do it. Without this they are counted and nothing is changed.")
@reason_option
@actor_option
@json_option
def dead_letters_dismiss(
    dead_letter_ids: tuple[int, ...],
    topic: str | None,
    refused_for: str | None,
    everything: bool,
    undo: bool,
    yes: bool,
    reason: str,
    actor: str,
    as_json: bool,
) -> None:
    """Let letters wait no more about which nothing is to be done.

    They are kept with their messages, and may still be shown, and replayed if of a topic. Letters must
    fit all that is given: ids, --topic, --refused-for.
    """
    if everything == bool(dead_letter_ids or topic or refused_for):
        raise ConfigError("say which: ids, --topic or --refused-for, or --all alone")
    now, choice = utc_now(), {"ids": dead_letter_ids, "topic": topic, "refused_for": refused_for}
    act = "dead_letter.undismiss" if undo else "dead_letter.dismiss"
    with transaction(current_settings()) as session:
        found = dismiss_dead_letters(
            session, None if undo else now, ids=dead_letter_ids, topic=topic, reason=refused_for
        )
        rows = [{"topic": topic, "reason": reason, "letters": number} for (topic, reason), number in found.items()]
        if yes and rows:
            append_audit(session, actor, act, "dead_letters", reason, {**choice, "found": rows}, now)
        else:
            session.rollback()
    if as_json:
        return show_json({"dismissed": yes and not undo, "letters": rows})
    table(rows, False, "no such letter was dismissed" if undo else "no such dead letter waits: nothing to dismiss")
    if rows:
        done = "they wait again" if undo else "dismissed; they are kept (--undo lets them wait again)"
        click.echo(f"\n{done}" if yes else "\nnothing was changed: add --yes")


@click.command(name="erase-user")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do it. Without this the counts are shown and nothing is changed.")
@reason_option
@actor_option
@json_option
def erase_user(user: str, yes: bool, reason: str, actor: str, as_json: bool) -> None:
    """Forget a person: texts, feedback, pairs, dataset rows; models are marked.

    USER is the name that your app sends. Without --yes the same work is done and undone, so that the counts are exact.
    """
    settings, now = current_settings(), utc_now()
    found = user_id(identity_key(settings), user)
    with transaction(settings) as session:
        counts = forget(session, found, actor=actor, now=now)
        append_audit(session, actor, "user.erase.reason", f"user:{found}", reason, {}, now)
        if not yes:
            session.rollback()
    if as_json:
        return show_json({"user_id": found, "erased": yes, "counts": counts})
    facts(counts)
    click.echo(
        "\nerased; Kafka keeps its copies until their retention ends" if yes else "\nnothing was changed: add --yes"
    )


def identity_key(settings: Settings) -> bytes:
    """Return the key of the pseudonyms. Raises ConfigError where it is not set or not hex."""
    try:
        key = bytes.fromhex(settings.identity_key.get_secret_value())
    except ValueError:
        key = b""
    if not key:
        raise ConfigError("identity_key is not set in hex: set HONE_IDENTITY_KEY to the gateway's, or nobody is found")
    return key


@click.group(cls=Verbs)
def keys() -> None:
    """Keys of the HTTP API: create, list, revoke."""


@keys.command(name="create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice([s.value for s in Scope]))
@click.option("--requests-per-minute", "pace", type=click.IntRange(0), help="0: any number. Default: the setting.")
@actor_option
@json_option
def keys_create(name: str, scopes: tuple[str, ...], pace: int | None, actor: str, as_json: bool) -> None:
    """Make a key and show it, once: only its hash is stored."""
    with transaction(current_settings()) as session:
        key = create_key(session, name, frozenset(map(Scope, scopes)), pace)
        facts = {"scopes": sorted(scopes), "requests_per_minute": pace}
        append_audit(session, actor, "key.create", f"key:{name}", "", facts, utc_now())
    if as_json:
        return show_json({"name": name, **facts, "key": key})
    click.echo(key)
    click.echo("keep it now: nobody can show it again", err=True)


@keys.command(name="list")
@json_option
def keys_list(as_json: bool) -> None:
    """List the keys by their first characters."""
    with transaction(current_settings()) as session:
        table(list_keys(session), as_json, "no key yet: `hone keys create NAME --scope chat --scope feedback`")


@keys.command(name="revoke")
@click.argument("prefix")
@reason_option
@actor_option
def keys_revoke(prefix: str, reason: str, actor: str) -> None:
    """Revoke the one live key that begins with PREFIX; gateways notice within seconds."""
    with transaction(current_settings()) as session:
        name = revoke_key(session, prefix, utc_now())
        append_audit(session, actor, "key.revoke", f"key:{name}", reason, {"prefix": prefix[:12]}, utc_now())
    click.echo(f"key {name} is revoked")


commands = (pairs, dead_letters, streams, backfill, import_file, replay, archive, erase_user, keys)
