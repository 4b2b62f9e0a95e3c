"""`hone restart`: one program of the stack that `hone up` left running, stopped and started again."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hone.errors import ConfigError, ProgramFailed
from hone.local.checkout import checkout
from hone.local.processes import Program, Supervisor
from hone.local.prometheus import WatchPorts, monitor_program
from hone.local.stack import Place, hone_programs, process_environment
from hone.local.up import (
    ENVIRONMENT_FILE,
    STATE_FILE,
    local_place,
    overrides,
    read_environment,
    stable_model,
    write_environment,
)
from hone.settings import load_settings

RESTARTABLE = ("runtime", "gateway", "ingest", "pairs", "controller", "monitor")
"""Hone's own programs. The other parts are started once, by `hone up`."""

OF_THE_STACK = frozenset(
    {
        *(
            "HONE_TOKEN_KEYS",
            "HONE_IDENTITY_KEY",
            "HONE_ADMIN_KEY",
            "HONE_DATABASE_URL",
            "HONE_KAFKA_BOOTSTRAP_SERVERS",
        ),
        *("HONE_KAFKA_INCARNATION", "HONE_GATEWAY_URL", "HONE_RUNTIME_URL", "HONE_MODE", "HONE_CONFIG", "HONE_VAR_DIR"),
        *("HONE_TRAINING_PYTHON", "HONE_AIRFLOW_URL"),
    }
)
"""What `hone up` decided for all programs together: one of them alone cannot have another."""


def restart_programs(names: Sequence[str], say: Callable[[str], object], place: Place | None = None) -> None:
    """Stop programs of the running stack, or what a crash left of them, and start them as `hone up` does.

    They read the configuration file anew, and take over what this shell sets of hone's settings; commands see it too,
    once all have started.

    Raises:
        Conflict: no stack runs here. ProgramFailed: one does not start; the stored settings are those of before.
        ConfigError: there is no such program, or a setting is wrong. All goes on as it was.
    """
    place = place or local_place(checkout())
    supervisor = Supervisor.attach(STATE_FILE)
    refuse_others(names)
    env = environment_now(read_environment(ENVIRONMENT_FILE), overrides())
    check_settings(env)
    programs = programs_of(place, {**env, **process_environment(place)})
    try:
        replace_programs(supervisor, [programs[name] for name in names], say)
    except ProgramFailed as error:
        again = f"\n`hone restart {' '.join(names)}` takes the settings of before, where this shell does not set others"
        raise ProgramFailed(f"{error}{again}") from None
    write_environment(ENVIRONMENT_FILE, env)


def refuse_others(names: Sequence[str]) -> None:
    """Raise ConfigError for the first name that is not one of hone's own programs."""
    for name in names:
        if name not in RESTARTABLE:
            raise ConfigError(
                f"{name} is not one of {', '.join(RESTARTABLE)}: other parts start with the stack, by `hone down` and "
                "`hone up`"
            )


def check_settings(env: Mapping[str, str]) -> None:
    """Raise ConfigError where a program with these variables would not accept its settings."""
    with environment(env):
        load_settings()


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for the time of the block: settings are read from nowhere else."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def replace_programs(supervisor: Supervisor, programs: Sequence[Program], say: Callable[[str], object]) -> None:
    """Stop each program and start it anew, one after the other. Raises ProgramFailed for one that does not start."""
    for program in programs:
        if supervisor.is_alive(program.name):
            say(f"{program.name} ends; what is in flight may take up to {program.stop_timeout_s:g} s …")
        supervisor.stop(program.name)
        supervisor.start(program)
        say(f"{program.name} runs again; log: {program.log_path}")


def environment_now(stored: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """Return the stack's variables with those that the shell sets otherwise."""
    return {**stored, **{name: value for name, value in shell.items() if name not in OF_THE_STACK}}


def programs_of(place: Place, env: Mapping[str, str]) -> dict[str, Program]:
    """Return hone's own programs by name."""
    models = stable_model(env["HONE_DATABASE_URL"])
    found = [*hone_programs(place, env, models), monitor_program(place, env, WatchPorts().monitor)]
    return {program.name: program for program in found}
