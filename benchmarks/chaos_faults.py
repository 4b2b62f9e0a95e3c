"""Faults of ingest, its database and its broker, drawn from a seed; and the members of the group that suffer them."""

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import psutil
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.result import say
from hone.local.ports import free_ports
from hone.local.postgres import find_postmaster, start_postgres
from hone.local.processes import Program, Supervisor

ROOT = Path(__file__).parents[1]
POINTS = ("consumed", "copied", "stored", "committed")
SHARES = {
    "kill": 22,
    "kill_at_point": 28,
    "leave": 14,
    "cut_connections": 14,
    "zombie": 6,
    "zombie_at_point": 6,
    "lock_table": 4,
    "postgres": 4,
    "broker": 2,
}
"""What happens, out of a hundred faults."""
ZOMBIE_S = (7.0, 9.0)
"""Beyond the session timeout of 6 s: the group gives a zombie's partitions away before it wakes up."""

SIGTERM_S = 30.0
"""A member that takes longer to end in order fails the run."""


@dataclass(frozen=True)
class Fault:
    """One fault, when so many events have been stored, so that each meets work and not a standstill."""

    after_events: int
    kind: str
    member: int
    option: str
    seconds: float


def schedule(seed: int, num_faults: int, num_events: int, num_members: int) -> list[Fault]:
    """Return the faults in their order: the same for the same numbers."""
    rng = random.Random(seed)
    places = sorted(rng.randrange(num_events // 50, num_events) for _ in range(num_faults))
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=num_faults)
    return [
        Fault(place, kind, rng.randrange(num_members), f"{rng.choice(POINTS)}:{rng.randint(1, 4)}", rng.random())
        for place, kind in zip(places, kinds, strict=True)
    ]


@dataclass
class Stage:
    """The servers and the group under attack."""

    supervisor: Supervisor
    sessions: sessionmaker[Session]
    postgres_dir: Path
    postgres_settings: Mapping[str, str]
    log_dir: Path
    env: Mapping[str, str]
    members: list[str] = field(default_factory=list)
    wake_at: dict[str, float] = field(default_factory=dict)
    num_started: int = 0
    ended: Counter[int] = field(default_factory=Counter)
    "Members that are gone, by exit code."
    threads: list[Thread] = field(default_factory=list)

    def start(self, *options: str) -> str:
        """Start one more member of the group and return its name."""
        self.num_started += 1
        name, port = f"ingest-{self.num_started}", str(free_ports(1)[0])
        argv = (sys.executable, "-m", "ingest", "events", "--metrics-port", port, *options)
        log = self.log_dir / f"{name}.log"
        self.supervisor.launch(Program(name=name, argv=argv, log_path=log, env=self.env, cwd=ROOT))
        return name

    def process(self, name: str) -> psutil.Process:
        """Return the member's process."""
        return psutil.Process(next(p.process.pid for p in self.supervisor.running if p.name == name))

    def replace(self, place: int, *options: str) -> None:
        """Put a new member in the place of one that is gone."""
        self.supervisor.stop(self.members[place])
        self.wake_at.pop(self.members[place], None)
        self.members[place] = self.start(*options)

    def tend(self) -> None:
        """Wake up who has slept enough, and replace who is gone."""
        now = time.monotonic()
        for place, name in enumerate(self.members):
            code = self.supervisor.exit_code(name)
            if code is not None:
                self.ended[code] += 1
                self.replace(place)
                continue
            asleep = self.process(name).status() == psutil.STATUS_STOPPED
            if asleep and now > self.wake_at.setdefault(name, now + sum(ZOMBIE_S) / 2):
                self.process(name).send_signal(signal.SIGCONT)
                del self.wake_at[name]

    def inject(self, fault: Fault) -> None:
        """Let the fault happen."""
        getattr(self, fault.kind)(fault)

    def kill(self, fault: Fault) -> None:
        """Kill a member at any moment."""
        self.supervisor.kill(self.members[fault.member])
        self.ended[-signal.SIGKILL] += 1
        self.replace(fault.member)

    def kill_at_point(self, fault: Fault) -> None:
        """Replace a member by one that dies at a named point of one of its first batches."""
        self.supervisor.kill(self.members[fault.member])
        self.ended[-signal.SIGKILL] += 1
        self.replace(fault.member, "--crash-at", fault.option)

    def leave(self, fault: Fault) -> None:
        """Let a member end in order, within a bound, and another one come."""
        name = self.members[fault.member]
        process = self.process(name)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + SIGTERM_S
        # Who was started to stop itself at a point may come to it only now.
        while self.supervisor.exit_code(name) is None and time.monotonic() < until:
            if process.status() == psutil.STATUS_STOPPED:
                process.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        self.ended[self.supervisor.wait(name, 1)] += 1
        self.replace(fault.member)

    def zombie(self, fault: Fault) -> None:
        """Stop a member at any moment, for longer than the group waits for it."""
        name = self.members[fault.member]
        if self.supervisor.exit_code(name) is None:
            self.wake_at[name] = time.monotonic() + ZOMBIE_S[0] + fault.seconds * (ZOMBIE_S[1] - ZOMBIE_S[0])
            self.process(name).send_signal(signal.SIGSTOP)

    def zombie_at_point(self, fault: Fault) -> None:
        """Replace a member by one that stops at a named point, perhaps with its transaction open."""
        self.supervisor.kill(self.members[fault.member])
        self.ended[-signal.SIGKILL] += 1
        self.replace(fault.member, "--crash-at", f"{fault.option}:SIGSTOP")

    def cut_connections(self, _fault: Fault) -> None:
        """End every connection of ingest, whatever it is doing."""
        self.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hone-ingest'")

    def lock_table(self, fault: Fault) -> None:
        """Keep a table from being written for a second or two."""
        statement = f"LOCK TABLE feedback_event IN EXCLUSIVE MODE; SELECT pg_sleep({1 + fault.seconds})"
        self.threads.append(Thread(target=self.ask, args=(statement,), daemon=True))
        self.threads[-1].start()

    def postgres(self, _fault: Fault) -> None:
        """Crash the database server, and start it again."""
        if server := find_postmaster(self.postgres_dir):
            server.send_signal(signal.SIGQUIT)
            psutil.wait_procs([server], timeout=30)
        start_postgres(self.postgres_dir, settings=self.postgres_settings)

    def broker(self, _fault: Fault) -> None:
        """Kill the broker, and start it again."""
        self.supervisor.kill("kafka")
        self.supervisor.restart("kafka")

    def ask(self, statement: str) -> None:
        """Run a statement; a server that goes away meanwhile is another fault's doing."""
        try:
            with self.sessions.begin() as session:
                session.execute(text(statement))
        except DBAPIError as error:
            say(f"  (the database went away: {str(error.orig).splitlines()[0] if error.orig else error})")
