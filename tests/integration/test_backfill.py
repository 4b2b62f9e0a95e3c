"""History from files: stored once however often it is run, nothing lost, whatever is in the lines."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from hone.errors import ConfigError, HoneError, Retryable
from hone.records import FEEDBACK_TOPIC
from hone.settings import Settings
from hone.store.dead_letters import dismiss_dead_letters, list_dead_letters
from hone.store.tables import DeadLetterRow, DirtyTurnRow, FeedbackEventRow, ResponseRow
from ingest.backfill import Tally, WholeTopic, fingerprint
from ingest.backfill_run import Backfill
from ingest.batch import decode_native
from ingest.streams.book import Book
from ingest.streams.check import samples_of_topic
from tests.support.cli import make_run
from tests.support.events import encode, feedback, response, uid
from tests.support.ingest_process import ROOT, count, wait_for
from tests.support.streams import book, feedback_stream

Sessions = sessionmaker[Session]
CSV = feedback_stream('event_id = "id"\nresponse_id = "answer.id"\nvalue = "vote"\nuser_id = { path = "user" }')


class Said(list[str]):
    """What a run said."""


@pytest.fixture
def said() -> Said:
    return Said()


Make = Callable[..., Backfill]


@pytest.fixture
def make(sessions: Sessions, said: Said) -> Make:
    def make(mappings: Book | None = None, halt: Event | None = None, **limits: float) -> Backfill:
        settings = Settings(ingest={"max_rows": 40, **limits})  # type: ignore[arg-type]
        return Backfill(settings, sessions, mappings or book("[streams]"), halt or Event(), said.append)

    return make


def native_file(path: Path, number: int, *bad: bytes) -> Path:
    lines = [encode(response(f"b{n}", turn=f"b{n % 30}")) for n in range(number)]
    lines += [encode(feedback("thumbs", f"b{n}", value=1, event_id=uid(f"b-{n}"))) for n in range(number)]
    lines[3:3] = [b"", *bad]
    body = b"\r\n".join(lines)
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


def letters(sessions: Sessions) -> list[tuple[str, int, str]]:
    with sessions() as session:
        rows = session.execute(select(DeadLetterRow.topic, DeadLetterRow.offset, DeadLetterRow.reason))
        return sorted(map(tuple, rows))


@pytest.mark.parametrize("name", ["old.jsonl", "old.jsonl.gz"])
def test_a_file_is_stored_once_however_often_it_is_run(
    make: Make, sessions: Sessions, tmp_path: Path, name: str
) -> None:
    path = native_file(tmp_path / name, 100, b"{broken", b'{"kind": "applause"}')
    for _ in range(2):
        make().file(path, None, again=False)
        assert (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (100, 100)
        assert letters(sessions) == [(f"file:{name}", 5, "not_json"), (f"file:{name}", 6, "wrong_shape")]
    assert count(sessions, DirtyTurnRow) > 0, "the pair worker is told"


def test_a_file_that_is_one_json_list_is_stored_and_its_bad_records_keep_their_number(
    make: Make, sessions: Sessions, tmp_path: Path
) -> None:
    path = tmp_path / "old.json"
    records = [encode(response(f"b{n}")) for n in range(100)]
    records[6] = b'{"kind": "applause"}'
    path.write_bytes(b"[\n" + b",\n".join(records) + b"\n]\n")
    for _ in range(2):
        make().file(path, None, again=False)
        assert count(sessions, ResponseRow) == 99
        assert letters(sessions) == [("file:old.json", 7, "wrong_shape")]


def test_a_killed_run_goes_on_where_it_was_and_ends_with_every_line_once(
    store_url: str, sessions: Sessions, tmp_path: Path
) -> None:
    path = native_file(tmp_path / "old.jsonl", 1500, b"{broken")
    env = {**os.environ, "HONE_DATABASE_URL": store_url, "HONE_INGEST__MAX_ROWS": "20"}
    argv = [sys.executable, "-m", "ingest", "backfill", str(path)]
    process = subprocess.Popen(argv, env=env, cwd=ROOT)
    wait_for(lambda: count(sessions, ResponseRow) > 100 or process.poll() is not None)
    process.kill()
    process.wait()
    assert 100 < count(sessions, ResponseRow) < 1500
    again = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (1500, 1500)
    assert letters(sessions) == [("file:old.jsonl", 5, "not_json")]
    assert " 0 there already" in again.stdout, "nothing was read twice"


def test_a_table_is_mapped_and_its_bad_rows_keep_their_line(
    make: Make, sessions: Sessions, tmp_path: Path, said: Said
) -> None:
    path = tmp_path / "votes.csv"
    rows = [b"id,answer.id,at,vote,user"]
    rows += [f"v-{n},{uid('a')},2026-01-05T12:00:00,{n % 2},ann".encode() for n in range(50)]
    rows[10] = f"v-x,{uid('a')},2026-01-05T12:00:00,seven,bob".encode()
    rows[20] = b"v-y,\xff\xfe,2026-01-05T12:00:00,1,bob"
    rows[30] = f"v-z,{uid('a')},,1,bob".encode()
    path.write_bytes("\ufeff".encode() + b"\n".join(rows))
    run = make(book(CSV))
    known_as = run.file(path, "s", again=False)
    assert count(sessions, FeedbackEventRow) == 47
    assert letters(sessions) == [
        ("file:votes.csv", 11, "wrong_shape"),
        ("file:votes.csv", 21, "not_json"),
        ("file:votes.csv", 31, "missing"),
    ]
    run.rejects(tmp_path / "rejects.jsonl", [known_as])
    rejected = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"], r["reason"]) for r in rejected] == [
        ("votes.csv", 11, "wrong_shape"),
        ("votes.csv", 21, "not_json"),
        ("votes.csv", 31, "missing"),
    ]
    assert "\\xff" in rejected[1]["body"]


def test_the_same_history_by_topic_and_by_file_has_the_same_ids() -> None:
    toml = feedback_stream('event_id = "id"').replace('topic = "t"', 'topic = "acme.votes"')
    from tests.support.streams import message

    body = {"id": "v-1", "on": "a", "at": "2026-01-05T12:00:00"}
    (by_topic,) = book(toml).decode(message(body, "acme.votes", at_ms=1_767_614_400_000))
    (by_file,) = book(toml).file_source("s").decode(message(body, "file:x.jsonl"))
    assert by_topic.event_id == by_file.event_id  # type: ignore[union-attr]


def test_after_a_corrected_mapping_again_reads_all_lines_and_settles_the_letters(
    make: Make, sessions: Sessions, tmp_path: Path
) -> None:
    path = tmp_path / "votes.jsonl"
    lines = [
        {"id": f"v-{n}", "on": "a", "at": "2026-01-05T12:00:00", "vote": v} for n, v in enumerate(["up", "yes", "no"])
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first = feedback_stream('event_id = "id"\nvalue = { path = "vote", map = { up = 1 } }')
    second = first.replace("up = 1", "up = 1, yes = 1")
    make(book(first)).file(path, "s", again=False)
    make(book(second)).file(path, "s", again=False)
    assert count(sessions, FeedbackEventRow) == 1, "what is done is done"
    make(book(second)).file(path, "s", again=True)
    assert count(sessions, FeedbackEventRow) == 2
    with sessions() as session:
        rows = session.scalars(select(DeadLetterRow).order_by(DeadLetterRow.dead_letter_id))
        assert [(row.offset, row.replayed_at is None) for row in rows] == [(2, False), (3, True)]


def waiting(sessions: Sessions) -> list[tuple[int, int]]:
    with sessions() as session:
        return sorted((row.offset, row.dead_letter_id) for row in list_dead_letters(session, waiting_only=True))


def test_a_line_that_fails_again_keeps_its_letter_and_a_dismissed_one_stays_dismissed(
    make: Make, sessions: Sessions, tmp_path: Path, said: Said
) -> None:
    path = native_file(tmp_path / "old.jsonl", 60, b"{broken", b'{"kind": "applause"}')
    make().file(path, None, again=False)
    first = waiting(sessions)
    make().file(path, None, again=True)
    assert waiting(sessions) == first and [line for line, _ in first] == [5, 6]
    with sessions.begin() as session:
        dismiss_dead_letters(session, datetime.now(UTC), reason="not_json")
    known_as = make().file(path, None, again=True)
    assert waiting(sessions) == first[1:]
    make().rejects(tmp_path / "rejects.jsonl", [known_as])
    assert said[-1].startswith("2 refused lines written"), "a dismissed line is a refused one"


def test_letters_of_a_reading_without_the_stream_wait_no_more_once_the_stream_reads_the_file(
    make: Make, sessions: Sessions, tmp_path: Path
) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(f'{{"on": "{uid("a")}", "at": "2026-01-05T12:00:00Z", "id": "v-1"}}\n{{"on": "b"}}\n')
    make().file(path, None, again=False)
    assert [line for line, _ in waiting(sessions)] == [1, 2]
    make(book(feedback_stream('event_id = "id"'))).file(path, "s", again=False)
    assert [line for line, _ in waiting(sessions)] == [2], "it lacks its time, whoever reads it"
    assert len(letters(sessions)) == 3


def test_letters_wait_until_their_lines_are_read_again(make: Make, sessions: Sessions, tmp_path: Path) -> None:
    path = native_file(tmp_path / "old.jsonl", 60, b"{broken")
    make().file(path, None, again=False)
    halt = Event()
    halt.set()
    with pytest.raises(HoneError, match="run the same again"):
        make(halt=halt).file(path, None, again=True)
    assert [line for line, _ in waiting(sessions)] == [5]


def test_a_renamed_file_keeps_its_place_and_its_letters(
    make: Make, sessions: Sessions, tmp_path: Path, said: Said
) -> None:
    path = native_file(tmp_path / "old.jsonl", 60, b"{broken")
    make().file(path, None, again=False)
    first = waiting(sessions)
    path = path.rename(tmp_path / "new.jsonl")
    make().file(path, None, again=False)
    assert "nothing to do" in said[-1] and "1 refused line" in said[-1]
    make().file(path, None, again=True)
    assert waiting(sessions) == first
    assert letters(sessions) == [("file:new.jsonl", 5, "not_json")]


def test_a_dry_run_says_what_would_become_of_the_lines_and_stores_nothing(
    make: Make, sessions: Sessions, tmp_path: Path, said: Said
) -> None:
    path = native_file(tmp_path / "old.jsonl", 10, b"{broken")
    make().rehearsal([path], None, tmp_path / "rejects.jsonl")
    assert said[0].startswith("old.jsonl:5: not_json")
    assert "20 to store (10 response, 10 thumbs) · 1 refused (1 not_json) · 0 passed over" in said[1]
    assert said[2] == f"1 refused line written to {tmp_path / 'rejects.jsonl'}"
    assert count(sessions, ResponseRow) == count(sessions, DeadLetterRow) == 0
    (rejected,) = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert (rejected["file"], rejected["line"], rejected["body"]) == ("old.jsonl", 5, "{broken")


def run_command(store_url: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HONE_DATABASE_URL": store_url, "HONE_IDENTITY_KEY": "ab" * 32}
    argv = [sys.executable, "-m", "ingest", "backfill", *words]
    return subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_a_table_says_the_same_dry_and_stored_and_plainly_that_a_second_run_has_nothing_to_do(
    store_url: str, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mapping = tmp_path / "votes.csv", tmp_path / "streams.toml"
    mapping.write_text(CSV.replace("[streams.s.fields]", 'only = { app = ["chat"] }\n[streams.s.fields]'))
    lines = [f"v-{n},{uid('a')},2026-01-05T12:00:00,{n % 2},ann,{('chat', 'mail')[n % 5 == 0]}" for n in range(30)]
    path.write_text("\n".join(["id,answer.id,at,vote,user,app", *lines, f"v-x,{uid('a')},,1,bob,chat"]))
    monkeypatch.setenv("HONE_INGEST__STREAMS", str(mapping))
    dry, first, second = (run_command(store_url, str(path), "--stream", "s", *more) for more in (["--dry-run"], [], []))
    assert f"{path}: 24 to store (24 thumbs) · 1 refused (1 missing) · 6 passed over" in dry.stdout, dry.stderr
    counts, refused, orphans = first.stdout.splitlines()
    assert counts == f"{path}: 24 new (24 thumbs) · 0 there already · 1 refused (1 missing) · 6 passed over"
    again = f"hone backfill {path} --stream s --again --mapping {mapping}"
    assert refused.endswith(f"says why; after a change of the mapping `{again}`")
    assert orphans.startswith(f"{path}: 24 acts of feedback (24 unsigned) on 1 answer that hone does not have: nothing")
    assert "nothing to do, an earlier run has read all of it; 1 refused line of this file is kept" in second.stdout
    assert [run.returncode for run in (dry, first, second)] == [0, 0, 0]
    assert dry.stderr == first.stderr == second.stderr == "", "no warning: rows begin at line 2"


def test_a_file_of_another_shape_ends_with_an_error_that_names_the_way(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text('{"vote": "up"}\n' * 3)
    for words, would in ((["--dry-run"], "every line would be refused"), ([], "every line was refused")):
        run = run_command(store_url, str(path), *words)
        assert run.returncode == 1
        assert run.stderr.startswith("hone: ") and run.stderr.count("\n") == 1, "one line, as other commands print it"
        assert would in run.stderr and "--stream NAME" in run.stderr
    path.write_text('{"vote": "up"}\n' * 1500)
    run = run_command(store_url, str(path))
    assert (run.returncode, "--stream NAME" in run.stderr) == (1, True), "also where the breaker opened"


def test_the_remedy_of_refused_lines_is_the_command_that_reads_them_again(
    make: Make, store_url: str, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_INGEST__STREAMS", "")  # --mapping sets it: here it is unset again in the end
    path, mapping = tmp_path / "old votes.jsonl", tmp_path / "streams.toml"
    path.write_text(f'{{"on": "{uid("a")}", "at": "2026-01-05T12:00:00Z", "vote": "great"}}\n')
    mappings = feedback_stream('value = { path = "vote", map = { good = 1 } }')
    mapping.write_text(mappings)
    backfill = make(book(mappings, path=mapping))
    backfill.file(path, "s", again=False)
    with pytest.raises(HoneError, match="every line was refused") as caught:
        backfill.report(str(path), Tally({}, 0, {"unmapped": 1}, 0), "s", [path])
    look, again = re.findall("`([^`]+)`", str(caught.value))
    assert look == f"hone backfill '{path}' --stream s --dry-run --mapping {mapping}"
    mapping.write_text(mappings.replace("good", "great"))
    run = make_run(store_url, monkeypatch, tmp_path)
    run(*shlex.split(again)[1:])
    assert (count(sessions, FeedbackEventRow), waiting(sessions)) == (1, [])


def test_a_database_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    path = native_file(tmp_path / "old.jsonl", 1)
    run = run_command("postgresql+psycopg2://nobody@127.0.0.1:1/none", str(path))
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert run.stderr.startswith("hone: the database does not answer")


def test_a_broker_that_does_not_answer_is_an_error_and_librdkafka_is_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ingest.backfill.BROKER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("ingest.streams.check.TIMEOUT_S", 0.3)
    with pytest.raises(Retryable, match="no broker answers"):
        WholeTopic("127.0.0.1:9", FEEDBACK_TOPIC, Event(), print)
    with pytest.raises(Retryable, match="no file of this name, and no broker answers"):
        samples_of_topic("127.0.0.1:9", "ratings", decode_native, 10)
    assert capfd.readouterr().err == ""


def test_a_file_that_is_cut_off_keeps_what_came_before_and_says_where(
    make: Make, sessions: Sessions, tmp_path: Path
) -> None:
    whole = native_file(tmp_path / "whole.jsonl.gz", 2000).read_bytes()
    path = tmp_path / "old.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HoneError, match=r"broken after line \d+"):
        make().file(path, None, again=False)
    assert 0 < count(sessions, ResponseRow) <= 2000


def test_a_file_of_nothing_but_rubbish_stops_at_the_breaker(make: Make, sessions: Sessions, tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_bytes(b"rubbish\n" * 5000)
    with pytest.raises(HoneError, match=r"are invalid, more than .* the last: file:old.jsonl/0@\d+: not_json"):
        make().file(path, None, again=False)
    assert count(sessions, DeadLetterRow) < 1000


@pytest.mark.parametrize("limits", [{"max_invalid_share": 0.5}, {"max_invalid_share": 1.0, "max_invalid_run": 70}])
def test_rows_that_only_the_database_refuses_open_the_breaker_too(
    make: Make, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    monkeypatch.setattr("ingest.breaker.WINDOW_MESSAGES", 100)
    path = tmp_path / "old.jsonl"
    too_large = [encode(response(f"x{n}", num_prompt_tokens=1 << 40)) for n in range(150)]
    path.write_bytes(b"\n".join([*(encode(response(f"b{n}")) for n in range(20)), *too_large]))
    with pytest.raises(HoneError, match="invalid"):
        make(**limits).file(path, None, again=False)
    assert count(sessions, ResponseRow) == 20
    assert 0 < count(sessions, DeadLetterRow) < 100


@pytest.mark.parametrize("code", ["40001", "53100"], ids=["a serialization failure", "a full disk"])
def test_a_fault_that_passes_is_waited_for_and_blames_no_line(
    make: Make, sessions: Sessions, tmp_path: Path, code: str
) -> None:
    with sessions.begin() as session:
        session.execute(text("CREATE SEQUENCE faults"))  # goes on counting where the transaction is undone
        session.execute(
            text(f"""
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('faults') <= 2 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END IF;
                RETURN NEW;
            END $$""")
        )
        session.execute(text("CREATE TRIGGER fail BEFORE INSERT ON response FOR EACH ROW EXECUTE FUNCTION fail()"))
    make().file(native_file(tmp_path / "old.jsonl", 50), None, again=False)
    assert (count(sessions, ResponseRow), count(sessions, FeedbackEventRow)) == (50, 50)
    assert count(sessions, DeadLetterRow) == 0


def test_a_signal_ends_it_after_the_batch_in_hand(make: Make, sessions: Sessions, tmp_path: Path) -> None:
    halt = Event()
    halt.set()
    with pytest.raises(HoneError, match="run the same again"):
        make(halt=halt).file(native_file(tmp_path / "old.jsonl", 10), None, again=False)
    assert count(sessions, ResponseRow) == 0


def test_what_is_no_history_is_named(make: Make, tmp_path: Path) -> None:
    for name, says in (("x.parquet", "must end in one of"), ("x.csv", "is a table")):
        (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(ConfigError, match=says):
            make().file(tmp_path / name, None, again=False)
    with pytest.raises(ConfigError, match="the streams are s"):
        make(book(CSV)).file(tmp_path / "x.csv", "other", again=False)


def test_a_renamed_file_is_the_same_history_and_another_stream_another(tmp_path: Path) -> None:
    path = native_file(tmp_path / "a.jsonl", 2)
    other = tmp_path / "b.jsonl"
    other.write_bytes(path.read_bytes())
    assert fingerprint(path, "s") == fingerprint(other, "s") != fingerprint(other, None)
