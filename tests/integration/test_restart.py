"""`hone restart`: one program of a stack that runs, with the settings of now."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hone.cli.context import ENVIRONMENT_FILE, STATE_FILE
from hone.cli.stack import ended_text
from hone.errors import ProgramFailed
from hone.local.broker import Broker
from hone.local.processes import Program, Supervisor
from hone.local.restart import OF_THE_STACK, RESTARTABLE, environment_now, programs_of, restart_programs
from hone.local.stack import Place, Ports, program_environment
from hone.local.stopping import down
from hone.local.up import read_environment, write_environment
from tests.support.cli import make_run
from tests.support.ingest_process import ROOT, wait_for


def place_in(folder: Path) -> Place:
    return Place(root=ROOT, data=folder / "var", libs=folder / "libs", ports=Ports.free())


def stack_environment(place: Place, database_url: str) -> dict[str, str]:
    broker = Broker("127.0.0.1:9", "external", "", True, "i")
    return program_environment(place, database_url, broker, mode="observe", config=ROOT / "configs" / "hone.toml")


def test_a_shell_changes_what_a_program_may_have_alone_and_nothing_else(tmp_path: Path) -> None:
    stored = {name: "stored" for name in OF_THE_STACK | {"HONE_INGEST__STREAMS"}}
    assert set(environment_now(stored, {name: "shell" for name in OF_THE_STACK}).values()) == {"stored"}
    assert environment_now(stored, {"HONE_INGEST__STREAMS": "new"})["HONE_INGEST__STREAMS"] == "new"
    decided = {name for name in stack_environment(place_in(tmp_path), "x") if name.startswith("HONE_")}
    assert decided | {"HONE_AIRFLOW_URL"} == OF_THE_STACK


def test_a_program_that_has_ended_is_named_by_the_status_and_started_with_the_settings_of_now(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(store_url, monkeypatch, tmp_path)
    place = place_in(tmp_path)
    write_environment(ENVIRONMENT_FILE, stack_environment(place, store_url))
    idle = Program(name="pairs", argv=("echo", "too tired"), log_path=tmp_path / "log")
    starter = Supervisor(STATE_FILE, detached=True)
    starter.launch(idle)
    starter.launch(replace(idle, name="gateway", argv=("sleep", "600"), log_path=tmp_path / "other"))
    try:
        wait_for(lambda: starter.exit_code("pairs") == 0)
        said = run("status").stdout
        assert "pairs has ended: too tired\n  when that is repaired: `hone restart pairs`" in said
        monkeypatch.setenv("HONE_TRIGGER__MIN_PAIRS", "77")
        restart_programs(["pairs"], print, place)
        url = f"http://127.0.0.1:{place.ports.pairs}/metrics"
        wait_for(lambda: "hone_trigger_min_pairs 77.0" in httpx.get(url, trust_env=False).text)
        assert read_environment(ENVIRONMENT_FILE)["HONE_TRIGGER__MIN_PAIRS"] == "77", "commands see it, too"
    finally:
        assert set(down(STATE_FILE.absolute(), timeout_s=5)) == {"gateway", "pairs"}


def test_what_cannot_be_restarted_goes_on_and_no_wrong_setting_is_kept(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(store_url, monkeypatch, tmp_path)
    write_environment(ENVIRONMENT_FILE, stack_environment(place_in(tmp_path), store_url))
    before = ENVIRONMENT_FILE.read_text()
    starter = Supervisor(STATE_FILE, detached=True)
    starter.launch(Program(name="gateway", argv=("sleep", "600"), log_path=tmp_path / "log"))
    try:
        said = run("restart", "gateway", "postgres", code=2).stderr
        assert "postgres is not one of runtime, gateway, ingest, pairs" in said and "nothing was stopped" in said
        monkeypatch.setenv("HONE_GATEWAY__RESPONSE_HOOK_URL", "example.org")
        said = run("restart", "gateway", code=2).stderr
        assert "HONE_GATEWAY__RESPONSE_HOOK_URL" in said and "'example.org'" in said
        assert starter.exit_code("gateway") is None and ENVIRONMENT_FILE.read_text() == before
    finally:
        down(STATE_FILE.absolute(), timeout_s=5)


def test_a_program_that_does_not_start_leaves_the_stored_settings_as_they_were(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(store_url, monkeypatch, tmp_path)
    place = place_in(tmp_path)
    write_environment(ENVIRONMENT_FILE, stack_environment(place, store_url))
    before = ENVIRONMENT_FILE.read_text()
    Supervisor(STATE_FILE, detached=True).launch(Program(name="x", argv=("sleep", "600"), log_path=tmp_path / "log"))
    monkeypatch.setenv("HONE_TRIGGER__MIN_PAIRS", "77")
    nowhere = replace(place, root=tmp_path / "no-checkout")
    try:
        with pytest.raises(ProgramFailed, match=r"(?s)no-checkout.*`hone restart ingest` takes the settings of before"):
            restart_programs(["ingest"], print, nowhere)
        assert ENVIRONMENT_FILE.read_text() == before
    finally:
        down(STATE_FILE.absolute(), timeout_s=5)


@pytest.mark.parametrize("name", ["kafka", "postgres", "airflow-scheduler"])
def test_of_a_part_that_cannot_be_restarted_alone_the_status_says_what_can(name: str, tmp_path: Path) -> None:
    said = ended_text({"part": name, "log": str(tmp_path / "none")})
    assert said.endswith("when that is repaired: `hone down`, then `hone up`")


def test_every_program_of_hone_can_be_restarted(store_url: str, tmp_path: Path) -> None:
    place = place_in(tmp_path)
    assert tuple(programs_of(place, stack_environment(place, store_url))) == RESTARTABLE
