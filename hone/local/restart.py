"""`hone restart`: one program of the stack that `hone up` left running, stopped and started again."""

from collections.abc import Callable, Mapping, Sequence

from hone.errors import ConfigError
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

    They read the configuration file anew, and take over what this shell sets of hone's settings; commands see it too.

    Raises:
        Conflict: no stack runs here. ConfigError: there is no such program. ProgramFailed: one does not start.
    """
    place = place or local_place(checkout())
    supervisor = Supervisor.attach(STATE_FILE)
    env = environment_now(read_environment(ENVIRONMENT_FILE), overrides())
    programs = programs_of(place, {**env, **process_environment(place)})
    for name in names:
        if name not in programs:
            raise ConfigError(
                f"{name} is not one of {', '.join(programs)}: other parts start with the stack, by `hone down` and "
                "`hone up`"
            )
    write_environment(ENVIRONMENT_FILE, env)
    for name in names:
        if supervisor.is_alive(name):
            say(f"{name} ends; what is in flight may take up to {programs[name].stop_timeout_s:g} s …")
        supervisor.stop(name)
        supervisor.start(programs[name])
        say(f"{name} runs again; log: {programs[name].log_path}")


def environment_now(stored: Mapping[str, str], shell: Mapping[str, str]) -> dict[str, str]:
    """Return the stack's variables with those that the shell sets otherwise."""
    return {**stored, **{name: value for name, value in shell.items() if name not in OF_THE_STACK}}


def programs_of(place: Place, env: Mapping[str, str]) -> dict[str, Program]:
    """Return hone's own programs by name."""
    models = stable_model(env["HONE_DATABASE_URL"])
    found = [*hone_programs(place, env, models), monitor_program(place, env, WatchPorts().monitor)]
    return {program.name: program for program in found}
