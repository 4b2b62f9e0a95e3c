"""`hone restart`: one program of a stack that runs, with the settings of now."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hone.cli.context import ENVIRONMENT_FILE, STATE_FILE
from hone.errors import ConfigError
from hone.local.broker import Broker
from hone.local.processes import Program, Supervisor
from hone.local.restart import OF_THE_STACK, environment_now, restart_programs
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
        with pytest.raises(ConfigError, match="postgres is not one of runtime, gateway, ingest, pairs"):
            restart_programs(["postgres"], print, place)
        monkeypatch.setenv("HONE_TRIGGER__MIN_PAIRS", "77")
        restart_programs(["pairs"], print, place)
        url = f"http://127.0.0.1:{place.ports.pairs}/metrics"
        wait_for(lambda: "hone_trigger_min_pairs 77.0" in httpx.get(url, trust_env=False).text)
        assert read_environment(ENVIRONMENT_FILE)["HONE_TRIGGER__MIN_PAIRS"] == "77", "commands see it, too"
    finally:
        assert set(down(STATE_FILE.absolute(), timeout_s=5)) == {"gateway", "pairs"}
