"""The supervisor: what it starts is healthy, and nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hone.errors import ConfigError, Conflict, ProgramFailed
from hone.local.ports import free_ports, is_free, require_free
from hone.local.processes import Program, Supervisor, answers
from hone.local.stack_state import ProcessRef, StackState, read_state, write_state
from hone.local.stopping import down, living, patience
from hone.local.usage import UsageSampler

STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
pids = [os.getpid(), subprocess.Popen([sys.executable, "-c", sleeper]).pid]
# One that left the group and the session, and whose parent is gone: only its environment tells where it belongs.
start = "subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.DEVNULL, start_new_session=True)"
middle = f"import subprocess, sys; print({start}.pid)"
pids.append(int(subprocess.run([sys.executable, "-c", middle, sleeper], stdout=subprocess.PIPE, check=True).stdout))
pathlib.Path(sys.argv[1]).write_text(" ".join(map(str, pids)))
time.sleep(600)
"""

SUPERVISOR = """
import pathlib, sys, time
from hone.local.processes import Program, Supervisor
directory, detached = pathlib.Path(sys.argv[1]), sys.argv[2] == "detached"
supervisor = Supervisor(directory / "stack.json", detached=detached, stop_timeout_s=0.5)
supervisor.start(Program(name="stubborn", argv=(sys.executable, "-c", sys.argv[3], str(directory / "pids")),
                         log_path=directory / "log", ready=(directory / "pids").exists))
print("started", flush=True)
if not detached:
    time.sleep(600)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "stack.json", stop_timeout_s=0.5) as supervisor:
        yield supervisor


def python(tmp_path: Path, code: str, *arguments: str, name: str = "program") -> Program:
    return Program(name=name, argv=(sys.executable, "-c", code, *arguments), log_path=tmp_path / f"{name}.log")


def stubborn(tmp_path: Path) -> Program:
    return replace(
        python(tmp_path, STUBBORN, str(tmp_path / "pids"), name="stubborn"), ready=(tmp_path / "pids").exists
    )


def pids_of(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def await_end(pids: list[int], timeout_s: float = 15.0) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(pids)


def test_a_program_that_ignores_term_is_stopped_with_its_children_and_its_runaways(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(stubborn(tmp_path))
    pids = pids_of(tmp_path)
    assert len(alive(pids)) == 3
    supervisor.stop_all()
    assert alive(pids) == []
    assert not supervisor.state_path.exists()


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    child = start_supervisor(tmp_path, "attached")
    pids = pids_of(tmp_path)
    assert len(alive(pids)) == 3
    child.kill()
    child.wait()
    assert await_end(pids) == []
    deadline = time.monotonic() + 5
    while mentioning(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mentioning(tmp_path) == [], "the watchdog itself ends too"


def test_a_detached_stack_outlives_its_starter_until_down(tmp_path: Path) -> None:
    child = start_supervisor(tmp_path, "detached")
    assert child.wait(timeout=10) == 0
    pids = pids_of(tmp_path)
    assert len(alive(pids)) == 3
    assert living(tmp_path / "stack.json") == ["stubborn"]
    assert down(tmp_path / "stack.json", timeout_s=0.3) == ["stubborn"]
    assert alive(pids) == []
    assert down(tmp_path / "stack.json") == []


def mentioning(path: Path) -> list[list[str]]:
    commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if command and any(str(path) in word for word in command)]


def start_supervisor(tmp_path: Path, mode: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), mode, STUBBORN]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "started\n"
    return child


def test_a_recycled_pid_is_never_killed(tmp_path: Path) -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        with Supervisor(tmp_path / "first.json") as supervisor:
            supervisor.launch(python(tmp_path, "import time; time.sleep(600)"))
            recorded = supervisor.running[0]
        recycled = replace(recorded, process=ProcessRef(innocent.pid, time.time() - 3600))
        state = StackState("0" * 32, ProcessRef(1, 0.0), (recycled,))
        write_state(tmp_path / "stack.json", state)
        assert down(tmp_path / "stack.json", timeout_s=0.3) == []
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_second_stack_with_the_same_state_file_is_refused(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.launch(python(tmp_path, "import time; time.sleep(600)"))
    with pytest.raises(Conflict, match=r"already running: program .*make down"):
        Supervisor(supervisor.state_path)


def test_a_program_that_ends_early_is_reported_with_its_code_log_and_remedy(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    code = "print('the disk is gone'); raise SystemExit(3)"
    program = replace(python(tmp_path, code), ready=lambda: False, remedy="buy a disk")
    with pytest.raises(ProgramFailed, match="program ended with code 3") as failure:
        supervisor.start(program)
    for part in ("the disk is gone", str(program.log_path), "buy a disk"):
        assert part in str(failure.value)


def test_a_program_that_never_gets_ready_is_stopped_at_its_deadline(supervisor: Supervisor, tmp_path: Path) -> None:
    program = replace(stubborn(tmp_path), ready=lambda: False, deadline_s=1.5)
    with pytest.raises(ProgramFailed, match=r"not ready within 1\.5 s"):
        supervisor.start(program)
    assert supervisor.running == ()
    assert alive(pids_of(tmp_path)) == []


def test_a_missing_executable_is_a_clear_error(supervisor: Supervisor, tmp_path: Path) -> None:
    program = Program(name="ghost", argv=("/no/such/program",), log_path=tmp_path / "log")
    with pytest.raises(ProgramFailed, match="ghost cannot be started"):
        supervisor.launch(program)


def test_start_waits_for_the_health_address(supervisor: Supervisor, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = Program(
        name="web",
        argv=(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)),
        log_path=tmp_path / "web.log",
        cwd=tmp_path,
        health_url=f"http://127.0.0.1:{port}/",
    )
    supervisor.start(server)
    assert answers(server.health_url)
    state = read_state(supervisor.state_path)
    assert state
    assert [(p.name, p.health_url) for p in state.programs] == [("web", server.health_url)]


def test_a_killed_program_is_noticed_and_can_be_restarted(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(stubborn(tmp_path))
    before = pids_of(tmp_path)
    supervisor.kill("stubborn")
    assert alive(before) == []
    with pytest.raises(ProgramFailed, match=f"stubborn ended with code -{signal.SIGKILL:d}"):
        supervisor.check()
    (tmp_path / "pids").unlink()
    supervisor.restart("stubborn")
    supervisor.check()
    assert set(pids_of(tmp_path)).isdisjoint(before)


def test_a_part_of_a_stack_whose_starter_is_gone_is_stopped_and_started_again_alone(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    with pytest.raises(Conflict, match="no stack runs here"):
        Supervisor.attach(path)
    starter = Supervisor(path, detached=True, stop_timeout_s=0.5)
    for name in ("one", "two"):
        starter.launch(python(tmp_path, "import time; time.sleep(600)", name=name))
    before = {program.name: program.process for program in starter.running}
    other = Supervisor.attach(path)
    other.stop("one")
    assert starter.exit_code("one") == -signal.SIGTERM
    other.start(python(tmp_path, "import time; time.sleep(600)", name="one"))
    after = read_state(path)
    assert after and {program.name: program.process.find() is not None for program in after.programs} == {
        "two": True,
        "one": True,
    }
    assert before["two"] in [program.process for program in after.programs]
    assert sorted(down(path, timeout_s=5)) == ["one", "two"]


POLITE = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.4)
    pathlib.Path(sys.argv[1]).write_text("flushed")
    raise SystemExit
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["stop", "down"])
def test_each_program_gets_its_own_time_to_end(tmp_path: Path, end: str) -> None:
    path, note = tmp_path / "stack.json", tmp_path / "note"
    starter = Supervisor(path, detached=True)
    hasty = python(tmp_path, "import time; time.sleep(600)", name="hasty")
    starter.launch(replace(hasty, stop_timeout_s=0.1))
    polite = python(tmp_path, POLITE, str(note), name="polite")
    starter.start(replace(polite, stop_timeout_s=20.0, ready=note.exists))
    assert patience(path) == 20.0
    if end == "stop":
        Supervisor.attach(path).stop("polite")
    else:
        down(path)
    assert note.read_text() == "flushed"
    starter.stop_all()
    assert patience(path) == 0.0


def test_a_program_that_ends_by_itself_can_be_waited_for(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.launch(python(tmp_path, "raise SystemExit(7)"))
    assert supervisor.wait("program", timeout_s=10) == 7
    assert supervisor.running == ()


def test_foundations_are_stopped_after_what_depends_on_them(supervisor: Supervisor, tmp_path: Path) -> None:
    note = "import pathlib, signal, sys, time\n" + (
        "def end(*_):\n    time.sleep(0.2)\n    open(sys.argv[1], 'a').write(sys.argv[2])\n    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\npathlib.Path(sys.argv[1] + sys.argv[2]).touch()\ntime.sleep(600)"
    )
    order = tmp_path / "order"
    for name, foundation in (("F", True), ("P", False)):
        ready = Path(f"{order}{name}").exists
        supervisor.start(
            replace(python(tmp_path, note, str(order), name, name=name), foundation=foundation, ready=ready)
        )
    supervisor.stop_all()
    assert order.read_text() == "PF"


def test_usage_counts_living_and_ended_programs_and_their_children(supervisor: Supervisor, tmp_path: Path) -> None:
    burn = "import subprocess, sys, time\nwhile time.process_time() < 0.4: pass\n"
    child = f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
    with UsageSampler(lambda: supervisor.running, interval_s=0.1) as sampler:
        supervisor.launch(python(tmp_path, burn + child, name="ended"))
        assert supervisor.wait("ended", timeout_s=20) == 0
        done = tmp_path / "done"
        code = burn + child + f"open({str(done)!r}, 'w')\ntime.sleep(600)"
        supervisor.start(replace(python(tmp_path, code, name="living"), ready=done.exists))
        usage = sampler.usage()
    assert 1.5 <= usage.cpu_seconds < 6
    assert usage.cpu_seconds_by_program["living"] >= 0.7
    own_mb = psutil.Process().memory_full_info().pss / 1e6 if sys.platform == "linux" else 0
    assert usage.peak_pss_mb > own_mb


def test_free_ports_differ_and_a_taken_one_is_named() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)
    with subprocess.Popen([sys.executable, "-m", "http.server", str(ports[0])], stderr=subprocess.PIPE) as server:
        try:
            deadline = time.monotonic() + 10
            while is_free(ports[0]) and time.monotonic() < deadline:
                time.sleep(0.05)
            with pytest.raises(ConfigError, match=f"gateway wants port {ports[0]}"):
                require_free([("gateway", ports[0]), ("runtime", ports[1])])
        finally:
            server.kill()


def test_programs_inherit_the_environment_and_their_own_additions(supervisor: Supervisor, tmp_path: Path) -> None:
    code = "import os; print(os.environ['ADDED'], os.environ['PATH'] != '')"
    supervisor.launch(replace(python(tmp_path, code), env={"ADDED": "yes"}))
    assert supervisor.wait("program", timeout_s=10) == 0
    assert (tmp_path / "program.log").read_text() == "yes True\n"
    assert "ADDED" not in os.environ
