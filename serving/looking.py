"""The controller as a program: it looks until it is stopped, and what it does while the database is away."""

import logging
import signal
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from sqlalchemy.exc import DBAPIError

from hone import metrics
from hone.errors import Conflict, Fenced, Retryable
from hone.health import Pulse, serve_health
from hone.records import TrafficPlan
from hone.settings import Settings
from hone.store.engine import make_engine, make_sessions
from hone.store.faults import Fault, fault_of
from serving.controller import Controller
from serving.traffic.backend import ObservedTraffic
from serving.traffic.choice import open_backend
from serving.traffic.local import LOAD_TIMEOUT_S

logger = logging.getLogger(__name__)


def run(settings: Settings, metrics_port: int | None = None, metrics_host: str = "127.0.0.1") -> int:
    """Look every `settings.rollout.interval_s` until SIGTERM or SIGINT; return the exit code.

    Raises:
        ConfigError: a router or the cluster refuses our key, or a setting of the backend is missing.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request of each look says nothing
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pulse = Pulse(max_age_s=LOAD_TIMEOUT_S + 10 * settings.rollout.interval_s)
    server = None if metrics_port is None else serve_health(metrics_port, pulse, metrics_host)
    sessions = make_sessions(make_engine(settings.database_url, pool_size=2, program="hone-controller"))
    with open_backend(settings) as backend:
        controller = Controller(sessions, backend, settings)
        keep_looking(controller, stop, pulse)
        with suppress(DBAPIError):  # the lease then runs out by itself
            controller.drop_lease(datetime.now(UTC))
    if server is not None:
        server.shutdown()
    return 0


def keep_looking(controller: Controller, stop: threading.Event, pulse: Pulse) -> None:
    """Look until `stop` is set. What may pass by itself is counted and tried again; a defect ends the program."""
    interval_s = controller.settings.rollout.interval_s
    while not stop.is_set():
        started = time.monotonic()
        look_once(controller, datetime.now(UTC))
        pulse.beat()
        took_s = time.monotonic() - started
        metrics.RECONCILE_SECONDS.observe(took_s)
        stop.wait(max(0.0, interval_s - took_s))


def look_once(controller: Controller, now: datetime) -> None:
    """Look, or without the database at least take out the canary that the gateways no longer send anybody."""
    try:
        try:
            controller.look(now)
        except DBAPIError as error:
            if fault_of(error) is not Fault.TRANSIENT:
                raise
            count_failure("database", error)
            take_out(controller, now)
    except Fenced as error:
        controller.lease = None
        count_failure("fenced", error)
    except (Retryable, Conflict) as error:
        count_failure(type(error).__name__.lower(), error)


def take_out(controller: Controller, now: datetime) -> None:
    """Split what comes past the gateways as they do themselves once a plan ran out or its glass was broken.

    It needs no database: a custom resource does not expire by itself. The plan's fence stays, so that a newer plan of
    another controller is not overwritten, and the next look with the database goes on from the rows.
    """
    plan = without_rows(controller.backend.observe(), now)
    if plan is not None:
        logger.warning(
            "no database, and the canary's plan ran out or its glass is broken: %s serves alone", plan.stable
        )
        controller.backend.split_past(plan)


def without_rows(observed: ObservedTraffic, now: datetime) -> TrafficPlan | None:
    """Return the plan for callers past the gateways that follows from the newest plan there, or None to leave it.

    Of a reverse watch, broken glass means the former model, which is its canary.
    """
    plans = [view.plan for view in observed.routers if view.plan is not None]
    newest = max(plans, key=lambda plan: plan.fence, default=None)
    if newest is None or newest.canary is None:
        return None
    is_broken = newest.rollout_id in observed.broken_glass
    if not is_broken and newest.expires_at > now:
        return None
    stable = newest.canary if is_broken and newest.reverse else newest.stable
    return msgspec.structs.replace(newest, stable=stable, canary=None, canary_weight=0.0, shadow=False, reverse=False)


def count_failure(reason: str, error: Exception) -> None:
    """Count and log a look that the next one will repeat."""
    metrics.RECONCILE_FAILURES.labels(reason).inc()
    logger.warning("this look failed, the next one tries again: %s", error)
