"""The command line on a real Postgres: what each command shows, changes, refuses and leaves in the audit log."""

import json
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hone.cli.context import utc_now
from hone.ids import user_id, uuid7
from hone.records import FEEDBACK_TOPIC, GateResult, Verdict
from hone.store.dead_letters import DeadLetter, add_dead_letters
from hone.store.evaluations import add_evaluations
from hone.store.events import store_events
from hone.store.runs import finish_run, start_run
from hone.store.tables import (
    ApiKeyRow,
    DatasetRow,
    FeedbackEventRow,
    PreferencePairRow,
    ResponseRow,
    RetrainRequestRow,
)
from hone.tokens import Claims, parse_keys
from tests.support.cli import Run, Sessions, audit, make_run, read
from tests.support.events import encode, feedback, response, uid
from tests.support.gateway import IDENTITY_KEY, TOKEN_KEYS
from tests.support.rollouts import add_models, enter_canary, start_rollout
from tests.support.streams import feedback_stream
from tests.support.training import row, write_rows


@pytest.fixture
def run(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return make_run(store_url, monkeypatch, tmp_path)


def add_pair(session: Session, name: str, *, user: str = "ann", **fields: Any) -> None:
    """Two answers of one turn, and that the second is the better one."""
    good, bad = response(f"{name}-good", turn=name, user=user, **fields), response(f"{name}-bad", turn=name, user=user)
    store_events(session, [good, bad], [feedback("choice", f"{name}-good", rejected=(uid(f"{name}-bad"),), user=user)])
    session.add(
        PreferencePairRow(
            turn_id=uid(name),
            source="choice",
            chosen_id=good.response_id,
            rejected_id=bad.response_id,
            user_id=good.user_id,
            weight=1.0,
            signed=True,
            active=True,
        )
    )


def test_a_database_without_tables_names_the_command_that_makes_them(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_DATABASE_URL", database_url)
    assert "run `hone migrate`" in run("pairs", code=1).stderr
    assert "up to date" in run("migrate").stdout
    assert "no pair yet" in run("pairs").stdout


def test_pairs_are_counted_by_source_and_show_no_text(run: Run, sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_pair(session, "one")
        add_pair(session, "two", user="bob")
    found = read(run("pairs", "--json", "--limit", 1))
    assert found["sources"] == [{"source": "choice", "active": 2, "retracted": 0, "people": 2, "mean_weight": 1.0}]
    assert len(found["newest"]) == 1
    assert "answer one-good" not in run("pairs").output


def test_status_is_one_object_and_also_a_few_lines(run: Run, sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session)
        add_pair(session, "one")
        enter_canary(session, start_rollout(session))
    found = read(run("status", "--json"))
    assert (found["mode"], found["freeze"], found["pairs"]["num_pairs"]) == ("observe", None, 1)
    assert (found["stable"]["model_version"], found["rollout"]["canary"]) == ("old", "new")
    text = run("status").stdout
    assert "2999 pairs short (1 of 3000)" in text
    assert "new canary at 25%, stage 1 of 2" in text


def test_a_freeze_is_seen_in_the_status_and_in_the_audit_log(run: Run, sessions: Sessions) -> None:
    run("freeze", "--reason", "bad answers", "--actor", "ann")
    assert "FROZEN" in run("status").stdout
    run("unfreeze", "--reason", "fixed", "--actor", "ann")
    assert "FROZEN" not in run("status").stdout
    assert audit(sessions) == [("switch.on", "bad answers", "ann"), ("switch.off", "fixed", "ann")]


def test_dead_letters_are_listed_and_shown_with_their_message(run: Run, sessions: Sessions) -> None:
    coordinates = {"incarnation": "i", "topic": FEEDBACK_TOPIC, "partition": 0, "key": None}
    with sessions.begin() as session:
        letters = [
            DeadLetter(**coordinates, offset=1, body=b'{"a": 1}', reason="wrong_shape", detail="no kind"),
            DeadLetter(**coordinates, offset=2, body=b"\xff", reason="not_json", detail="bad"),
        ]
        add_dead_letters(session, letters)
    listed = read(run("dead-letters", "list", "--json"))
    assert listed["by_reason"] == {"wrong_shape": 1, "not_json": 1}
    first = listed["newest"][-1]["dead_letter_id"]
    assert run("dead-letters", "list", "--reason", "wrong_shape", "--id-only").stdout == f"{first}\n"
    assert '"a": 1' in run("dead-letters", "show", first).stdout
    assert read(run("dead-letters", "show", first + 1, "--json"))["body"] == "\\xff"
    line = run("dead-letters", "list", "--reason", "not_json").stdout.splitlines()[1]
    assert f"{FEEDBACK_TOPIC}/0@2" in line and line.endswith("waits")
    assert "no dead letter 99" in run("dead-letters", "show", 99, code=1).stderr


def test_dead_letters_are_dismissed_with_a_reason_and_kept(run: Run, sessions: Sessions) -> None:
    coordinates = {"incarnation": "i", "partition": 0, "key": None, "body": b"x", "detail": "d"}
    topics = [("file:old.csv", "missing"), ("file:old.csv", "missing"), ("file:old.csv", "not_json"), ("t", "missing")]
    with sessions.begin() as session:
        add_dead_letters(
            session, [DeadLetter(**coordinates, offset=n, topic=t, reason=r) for n, (t, r) in enumerate(topics)]
        )
    dismiss = ("dead-letters", "dismiss", "--reason", "an old export", "--actor", "ann")
    assert "nothing was changed: add --yes" in run(*dismiss, "--topic", "file:old.csv").stdout
    assert read(run("status", "--json"))["dead_letters"] == {"missing": 3, "not_json": 1}
    found = read(run(*dismiss, "--topic", "file:old.csv", "--refused-for", "missing", "--yes", "--json"))
    assert found == {"dismissed": True, "letters": [{"topic": "file:old.csv", "reason": "missing", "letters": 2}]}
    assert read(run("status", "--json"))["dead_letters"] == {"missing": 1, "not_json": 1}
    assert audit(sessions) == [("dead_letter.dismiss", "an old export", "ann")]
    waiting = read(run("dead-letters", "list", "--waiting", "--json"))
    assert waiting["by_reason"] == {"missing": 1, "not_json": 1}
    gone, *_, last = (row["dead_letter_id"] for row in read(run("dead-letters", "list", "--json"))["newest"][::-1])
    assert f"dead letters {gone} do not exist, do not wait" in run(*dismiss, gone, last, "--yes", code=1).stderr
    assert "say which" in run(*dismiss, last, "--all", code=1).stderr
    run(*dismiss, "--all", "--yes")
    assert read(run("status", "--json"))["dead_letters"] == {}
    assert "no such dead letter waits" in run(*dismiss, "--all", "--yes").stdout
    assert "they wait again" in run(*dismiss, last, "--undo", "--yes").stdout
    assert read(run("status", "--json"))["dead_letters"] == {"missing": 1}
    assert audit(sessions)[-1] == ("dead_letter.undismiss", "an old export", "ann")
    assert f"dead letters {last} do not exist, wait, or" in run(*dismiss, last, "--undo", code=1).stderr
    assert len(read(run("dead-letters", "list", "--json"))["newest"]) == 4, "all are kept"


def test_a_dead_letter_is_sent_back_by_the_program_of_the_checkout(
    run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HONE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    body = encode(feedback("thumbs", "r1", value=1.0))
    letter = DeadLetter(
        incarnation="i", topic=FEEDBACK_TOPIC, partition=0, offset=1, key=None, body=body, reason="x", detail="y"
    )
    with sessions.begin() as session:
        add_dead_letters(session, [letter])
    number = read(run("dead-letters", "list", "--json"))["newest"][0]["dead_letter_id"]
    run("dead-letters", "replay", number, "--dry-run")
    assert "dry run: nothing was sent" in capfd.readouterr().out
    run("dead-letters", "replay", number + 1, "--dry-run", code=1)
    error = capfd.readouterr().err
    assert error.startswith(f"hone: no dead letter {number + 1}") and error.count("\n") == 1, "as other commands do"


def test_a_dead_letter_of_another_shape_is_replayed_by_the_commands_that_its_errors_name(
    run: Run,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HONE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("HONE_INGEST__STREAMS", "")  # --mapping sets it: here it is unset again in the end
    monkeypatch.delenv("HONE_INGEST__STREAMS")
    mapping = tmp_path / "streams of acme.toml"
    mapping.write_text(feedback_stream('value = { path = "vote", map = { good = 1 } }'))
    body = f'{{"on": "{uid("a")}", "at": "2026-01-05T12:00:00Z", "vote": "great"}}'.encode()
    letter = DeadLetter(
        incarnation="i", topic="t", partition=0, offset=1, key=None, body=body, reason="unmapped", detail="y"
    )
    with sessions.begin() as session:
        add_dead_letters(session, [letter])
    (number,) = (row["dead_letter_id"] for row in read(run("dead-letters", "list", "--json"))["newest"])
    run("dead-letters", "replay", number, "--mapping", mapping, "--dry-run", code=1)
    show, repaired, again = re.findall("`([^`]+)`", capfd.readouterr().err)
    assert show == f"hone dead-letters show {number} --body > FILE"
    assert run(*shlex.split(show)[1:-2]).stdout_bytes == body
    assert repaired == f"hone dead-letters replay {number} --fixed FILE --mapping '{mapping}'"
    mapping.write_text(feedback_stream('value = { path = "vote", map = { great = 1 } }'))
    run(*shlex.split(again)[1:], "--dry-run")
    assert capfd.readouterr().out.count("dry run: nothing was sent") == 1


def test_a_file_of_pairs_becomes_one_dataset_without_what_is_not_permissive(
    run: Run, sessions: Sessions, tmp_path: Path
) -> None:
    texts = [
        "How do I bake bread?",
        "Why is the sea salty?",
        "Name three rivers.",
        "Explain a rainbow.",
        "What is a bee?",
    ]
    rows = [
        {"id": str(n), "prompt": text, "chosen": f"good {n}", "rejected": f"bad {n}", "source": "s", "license": license}
        for n, (text, license) in enumerate(
            zip(texts, ["MIT", "MIT", "Apache-2.0", "MIT", "CC-BY-NC-4.0"], strict=True)
        )
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read(run("import", file, "--label", "bought", "--json"))
    assert found["train"] + found["dev"] + found["test"] == 4
    assert found["left_out"] == {"license": 1}
    assert read(run("import", file, "--label", "bought", "--json"))["dataset_id"] == found["dataset_id"]
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(DatasetRow)) == 1
    file.write_text("{")
    assert "line 1" in run("import", file, "--label", "broken", code=1).stderr


def test_erasing_a_person_shows_first_and_changes_only_when_told(run: Run, sessions: Sessions) -> None:
    key = bytes.fromhex(IDENTITY_KEY)
    person = {"user_id": user_id(key, "ann@example.org")}
    with sessions.begin() as session:
        store_events(session, [response("r1", **person)], [feedback("thumbs", "r1", value=1.0, **person)])
    words = ("erase-user", "ann@example.org", "--reason", "she asked", "--actor", "me", "--json")
    preview = read(run(*words))
    assert (preview["erased"], preview["counts"]["responses"], preview["counts"]["feedback_events"]) == (False, 1, 1)
    assert audit(sessions) == []
    done = read(run(*words, "--yes"))
    assert done["counts"] == preview["counts"]
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(FeedbackEventRow)) == 0
        assert session.scalars(select(ResponseRow.completion)).all() == ["[erased]"]
    assert [action for action, _, _ in audit(sessions)] == ["user.erase", "user.erase.reason"]


def test_a_key_is_shown_once_and_can_be_revoked(run: Run, sessions: Sessions) -> None:
    made = read(run("keys", "create", "app", "--scope", "chat", "--scope", "feedback", "--json"))
    listed = read(run("keys", "list", "--json"))
    assert (listed[0]["name"], listed[0]["scopes"], listed[0]["revoked_at"]) == ("app", "chat feedback", None)
    assert (made["requests_per_minute"], listed[0]["requests_per_minute"]) == (None, None)
    assert made["key"] not in run("keys", "list").output
    run("keys", "revoke", made["key"][:12], "--reason", "leaked")
    assert "0 live keys begin with" in run("keys", "revoke", made["key"][:12], "--reason", "again", code=1).stderr
    with sessions() as session:
        assert session.scalars(select(ApiKeyRow.revoked_at)).one() is not None
    assert [action for action, _, _ in audit(sessions)] == ["key.create", "key.revoke"]


def weights(directory: Path, content: bytes) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(content)
    return directory


def test_models_are_added_and_one_is_stable_with_a_reason_to_replace_it(
    run: Run, sessions: Sessions, tmp_path: Path
) -> None:
    first = read(run("models", "add", weights(tmp_path / "a", b"a"), "--stable", "--json"))["model_version"]
    again = read(run("models", "add", tmp_path / "a", "--stable", "--json"))["model_version"]
    assert again == first
    other = weights(tmp_path / "b", b"b")
    assert "say with --reason why" in run("models", "add", other, "--stable", code=1).stderr
    assert [row["model_version"] for row in read(run("models", "list", "--json"))] == [first], "nothing half done"
    second = read(run("models", "add", other, "--stable", "--reason", "a better base", "--json"))["model_version"]
    stable = {row["model_version"]: row["stable"] for row in read(run("models", "list", "--json"))}
    assert stable == {first: False, second: True}
    assert [(action, reason) for action, reason, _ in audit(sessions)] == [
        ("alias.move", "the first model"),
        ("alias.move", "a better base"),
    ]
    assert "no *.safetensors in" in run("models", "add", tmp_path, code=1).stderr


def test_an_override_needs_a_reason_and_shows_what_the_gates_said(run: Run, sessions: Sessions) -> None:
    with sessions.begin() as session:
        add_models(session, canary_status="rejected")
        fail = GateResult(gate="win_rate", verdict=Verdict.FAIL, reason="0.41", measurements={"win_rate": 0.41})
        add_evaluations(session, "new", None, [fail])
    assert "fail" in run("models", "show", "new").stdout
    assert "too short" in run("models", "override", "new", "--reason", "ok", code=1).stderr
    run("models", "override", "new", "--reason", "judged by hand, see ticket 12")
    shown = read(run("models", "show", "new", "--json"))
    assert (shown["status"], shown["gates"][0]["measurements"]) == ("overridden", {"win_rate": 0.41})
    assert "not registered" in run("models", "show", "nothing", code=1).stderr


def test_a_person_can_ask_for_a_retraining_and_take_it_back(run: Run, sessions: Sessions) -> None:
    words = (
        "retrain",
        "--set",
        "lora.rank=8",
        "--set",
        "steps=5",
        "--reason",
        "new recipe",
        "--actor",
        "ann",
        "--json",
    )
    made = read(run(*words))
    assert (made["status"], made["method"], made["spec"]) == ("open", "dpo", {"lora": {"rank": 8}, "steps": 5})
    with sessions() as session:
        assert session.scalars(select(RetrainRequestRow.crossing)).one().startswith("manual:")
    assert [row["reason"] for row in read(run("requests", "list", "--json", "--status", "open"))] == ["new recipe"]
    run("requests", "cancel", made["request_id"], "--reason", "typo", "--actor", "ann")
    assert read(run("requests", "list", "--json"))[0]["status"] == "cancelled"
    assert audit(sessions) == [("retrain.request", "new recipe", "ann"), ("retrain.cancel", "typo", "ann")]
    assert "does not exist" in run("retrain", "--dataset", "none", "--reason", "x", code=1).stderr
    wrong = run("retrain", "--set", "lora.rnk=8", "--reason", "x", code=1).stderr
    assert "lora.rnk = 8" in wrong, "refused before anything is asked for"
    assert "is not an id (of one request)" in run("requests", "cancel", "7", "--reason", "x", code=1).stderr


def test_a_frozen_platform_takes_the_wish_and_says_that_it_waits(run: Run) -> None:
    run("freeze", "--reason", "holidays")
    assert "it starts after `hone unfreeze`" in run("retrain", "--reason", "soon").stderr


def test_runs_and_lineage_lead_from_an_answer_to_its_model(run: Run, sessions: Sessions) -> None:
    now = utc_now()
    with sessions.begin() as session:
        add_models(session)
        add_pair(session, "one", model_version="new")
        dataset = {"dataset_id": "d1", "kind": "pairs", "source": "feedback", "manifest": {}}
        session.add(DatasetRow(**dataset, num_train=1, num_dev=0, num_test=0))
        session.flush()
        start_run(
            session,
            run_id="r-1",
            request_id=None,
            dataset_id="d1",
            method="dpo",
            base_version="old",
            spec={"steps": 5},
            directory=Path("/runs/r-1"),
            now=now,
        )
        finish_run(session, "r-1", {"loss": 0.5}, now + timedelta(seconds=9))
    assert [row["run_id"] for row in read(run("runs", "list", "--json"))] == ["r-1"]
    assert read(run("runs", "show", "r-1", "--json"))["metrics"] == {"loss": 0.5}
    ring, answer = parse_keys(TOKEN_KEYS), uid("one-good")
    token = ring.mint(Claims(answer, uid("c"), uid("one"), uid("ann"), now))
    by_token, by_id = read(run("lineage", token, "--json")), read(run("lineage", answer, "--json"))
    assert by_token == by_id
    assert by_id["model"]["model_version"] == "new"
    assert "new" in run("lineage", answer).stdout
    assert "is not stored" in run("lineage", uuid7(), code=1).stderr


def test_train_checks_everything_and_stops_on_a_dry_run(
    run: Run, tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows" / "train.jsonl", [row(k) for k in range(4)])
    words = ["train", "sft", "--dataset", tmp_path / "rows", "--base", tiny_base, "--dry-run"]
    run(*words)
    shown = capfd.readouterr()
    for said in (
        "4 pairs; advised at least 500",
        "4 train, 0 dev, 0 test",
        "below the advised minimum of 500",
        "steps",
    ):
        assert said in shown.out
    assert "dry run: nothing was trained" in shown.out
    assert "{" not in shown.out
    assert "INFO" not in shown.err
    assert not list((tmp_path / "var").rglob("model")), "nothing is trained"
    run(*words, "--set", "sft.pakking=true", code=2)
    assert capfd.readouterr().err.startswith("hone: ")


def test_a_sweep_lays_its_options_over_every_trials_spec(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.toml").write_text('method = "dpo"\n[space]\nlora.rank = [2, 4]\n')
    run("sweep", tmp_path / "sweep.toml", "--set", "betta=0.1", code=2)
    assert "betta = 0.1 is not a setting: did you mean beta?" in capfd.readouterr().err
