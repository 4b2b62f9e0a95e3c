"""`python -m examples.demo`: one turn of the whole loop; exit code 0 only if it kept every promise."""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console

from examples.demo.findings import failures, findings
from examples.demo.report import print_report, write_report
from examples.demo.scenario import Story, tell
from examples.demo.seldon import BACKENDS, SERVERS, backend_of, require_environment, start_cluster
from examples.demo.show import Show
from examples.demo.watch import DemoFailed
from examples.demo.world import (
    HOME,
    STATE_FILE,
    make_base,
    make_place,
    register_base,
    start_foundations,
    start_programs,
)
from examples.support.base_model import PretrainingFailed
from examples.support.drive import DriveFailed
from hone.errors import HoneError
from hone.local.broker_choice import choose_broker
from hone.local.processes import Supervisor
from hone.local.usage import UsageSampler

TITLE = "[bold]hone demo[/]: chat → feedback → pairs → training → gates → canary → promotion, and a rollback"


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="who serves both arms of live traffic")
    backend = backend_of(parser.parse_args().backend)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    try:
        require_environment(backend)
        run(console, backend)
    except KeyboardInterrupt:
        console.print("\ninterrupted: every program was stopped")
        return 130
    except (HoneError, DriveFailed, PretrainingFailed) as error:
        console.print(f"\n[red]The demo failed.[/] {error}", highlight=False, markup=True)
        return 1
    return 0


def run(console: Console, backend: str = "local") -> None:
    """Start everything, tell the story, stop everything, and write the report.

    Raises:
        HoneError: a part failed, or a number does not keep its promise.
    """
    console.print(TITLE)
    show = Show(console)
    supervisor = Supervisor(STATE_FILE)
    with supervisor, UsageSampler(lambda: supervisor.running) as sampler:
        place = make_place()
        console.print(f"[dim]data and logs in {place.data}; broker: {choose_broker(None, place.libs).reason}[/]")
        console.print(f"[dim]both arms of live traffic are served by {SERVERS[backend]}[/]\n")
        with show.stage("Postgres, broker, schemas, Airflow's database", 15) as update:
            world = start_foundations(supervisor, place, update)
        with show.stage("the base model (trained from nothing once, then cached)", 73) as update:
            base = make_base(update)
        with show.stage("gateway, runtime, ingest, pair worker, controller", 10) as update:
            version = register_base(world, base)
            if backend != "local":
                start_cluster(world, backend)
            start_programs(world, version, base, update)
        story = Story(version, base)
        tell(world, show, story)
        report = findings(world, story, show.timings, sampler.usage(), backend)
        with show.stage("stop everything", 5):
            supervisor.stop_all()
    finish(report, console, list(failures(report)))


def finish(
    report: dict[str, object], console: Console, broken: list[str], write: Callable[..., None] = write_report
) -> None:
    """Write and print the report; raise DemoFailed where a promise is broken."""
    write(report, HOME)
    print_report(report, console, HOME)
    if broken:
        raise DemoFailed("; ".join(broken) + f": see {HOME}/report.json")


if __name__ == "__main__":
    sys.exit(main())
