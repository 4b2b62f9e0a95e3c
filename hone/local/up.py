"""`hone up`: start the whole stack for real use, leave it running, and say where everything is."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import select

from hone.errors import ConfigError
from hone.local.airflow import airflow_environment, airflow_programs, prepare_airflow
from hone.local.broker import Broker
from hone.local.checkout import checkout
from hone.local.ports import require_free
from hone.local.processes import Supervisor, refuse_second_stack
from hone.local.prometheus import WatchPorts, monitoring_programs
from hone.local.stack import (
    Place,
    Ports,
    hone_programs,
    program_environment,
    start_database,
    start_topics,
)
from hone.settings import read_toml
from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.tables import ModelAliasRow, ModelVersionRow

STATE_FILE = Path("var/run/stack.json")
ENVIRONMENT_FILE = Path("var/run/stack.env")
SHARED_NAMES = ("HONE_", "AIRFLOW")


def start_stack(*, mode: str, config: Path, with_airflow: bool, say: Callable[[str], object]) -> None:
    """Start every part; on any failure stop what was started. The stack outlives this process.

    Raises:
        Conflict: a stack already runs here. ConfigError: a port is taken. ProgramFailed: a part did not start.
    """
    root = checkout()
    refuse_second_stack(STATE_FILE.absolute())
    place = local_place(root)
    ports = {**vars(place.ports), **vars(WatchPorts())}
    require_free([(name, port) for name, port in ports.items() if with_airflow or name != "airflow"])
    supervisor = Supervisor(STATE_FILE, detached=True)
    try:
        start_parts(supervisor, place, mode=mode, config=config.absolute(), with_airflow=with_airflow, say=say)
    except BaseException:
        supervisor.stop_all()
        raise


def local_place(root: Path) -> Place:
    """Return where the stack of this folder lives."""
    return Place(root=root, data=Path("var/up").absolute(), libs=Path("var/kafka/libs").absolute(), ports=Ports.fixed())


def start_parts(
    supervisor: Supervisor, place: Place, *, mode: str, config: Path, with_airflow: bool, say: Callable[[str], object]
) -> None:
    """Start foundations, programs and Airflow in this order, and write the environment file for the command line."""
    if not config.is_file():
        raise ConfigError(f"no configuration at {config}: name one with --config")
    say("Postgres …")
    database_url, airflow_url = database_urls(supervisor, place)
    migrate(database_url)
    say("Kafka …")
    broker = start_topics(supervisor, place, os.environ.get("HONE_KAFKA_BOOTSTRAP_SERVERS"), detached=True)
    env = program_environment(place, database_url, broker, mode=mode, config=config)
    if with_airflow:
        env |= airflow_environment(
            place.root, place.data / "airflow", airflow_url, place.ports.airflow, broker.bootstrap_servers
        )
        env["HONE_AIRFLOW_URL"] = env["AIRFLOW__API__BASE_URL"]
    write_environment(ENVIRONMENT_FILE, overrides() | env)
    say("gateway, runtime, ingest, pair worker, controller, monitor …")
    models = stable_model(database_url)
    supervisor.start_together([*hone_programs(place, env, models), *monitoring_programs(place, env)])
    if with_airflow:
        say("Airflow: database, then four components (about a minute) …")
        prepare_airflow(env, place.logs / "airflow-migrate.log")
        supervisor.start_together(airflow_programs(env, place.logs))
    say(summary(place, broker, mode, models, env))


def database_urls(supervisor: Supervisor, place: Place) -> tuple[str, str]:
    """Return the addresses of hone's and Airflow's databases: yours (`HONE_DATABASE_URL`), else the embedded ones."""
    given = os.environ.get("HONE_DATABASE_URL")
    server = start_database(supervisor, place)
    return given or server.database_url("hone"), server.database_url("airflow")


def stable_model(database_url: str) -> dict[str, Path]:
    """Return the version that `stable` names, with its directory; empty in a new install."""
    query = select(ModelVersionRow).join(ModelAliasRow, ModelAliasRow.model_version == ModelVersionRow.model_version)
    engine = make_engine(database_url, pool_size=1)
    with make_sessions(engine)() as session:
        row = session.scalar(query.where(ModelAliasRow.alias == "stable"))
    engine.dispose()
    return {row.model_version: Path(row.directory)} if row else {}


def golden_tests_are_set(env: Mapping[str, str]) -> bool:
    """Say whether an operator has given the gates anything that a challenger must not forget."""
    training = read_toml(Path(env["HONE_CONFIG"])).get("training", {})
    return bool(training.get("golden_tests") or "HONE_TRAINING__GOLDEN_TESTS" in os.environ)


def overrides() -> dict[str, str]:
    """Return what the starting shell sets of hone's settings: the programs inherit it, so commands must see it too."""
    return {name: value for name, value in os.environ.items() if name.startswith("HONE_")}


def write_environment(path: Path, env: Mapping[str, str]) -> None:
    """Keep the stack's variables for commands typed later, readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={value}\n" for name, value in env.items() if name.startswith(SHARED_NAMES)))


def read_environment(path: Path) -> dict[str, str]:
    """Return what `write_environment` wrote; empty where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line)


def summary(place: Place, broker: Broker, mode: str, models: Mapping[str, Path], env: Mapping[str, str]) -> str:
    """Return what a person needs next: addresses, the key, the mode, and the first step where no model is there yet."""
    lines = [
        "",
        f"gateway   {env['HONE_GATEWAY_URL']}   (OpenAI-compatible)",
        f"key       HONE_ADMIN_KEY in {place.data / 'secrets.env'}",
        f"broker    {broker.bootstrap_servers}   ({broker.kind} {broker.version})".rstrip(),
        f"mode      {mode}"
        + ("   (collects and reports; trains nothing, touches no traffic)" if mode == "observe" else ""),
    ]
    if "HONE_AIRFLOW_URL" in env:
        lines.append(f"Airflow   {env['HONE_AIRFLOW_URL']}")
    lines.append(f"stable    {next(iter(models), 'no model yet: `hone models add DIR --stable`')}")
    if not golden_tests_are_set(env):
        lines.append(
            "gates     no golden tests yet: no challenger can pass; see training.golden_tests in docs/settings.md"
        )
    watched = f"http://127.0.0.1:{WatchPorts().prometheus}   (Prometheus: metrics and alerts)"
    missing = "served by every program; install Prometheus to keep them and to be alerted"
    lines.append(f"metrics   {watched if shutil.which('prometheus') else missing}")
    return "\n".join([*lines, "", "`hone status` shows it all, `hone down` stops it."])
