"""Facts into gauges. Every known label value is set at each look, so that no series comes and goes."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge

from hone import metrics
from hone.records import Verdict
from hone.rollout import Phase
from hone.settings import Settings
from hone.store.facts import Facts, Group
from monitoring import drift

NONE = Group(0, None, None)
PENDING = ("open", "claimed")
REQUEST_ENDS = ("done", "failed", "cancelled")
RUN_STATUSES = ("running", "done", "failed")
RUN_ENDS = ("done", "failed")
ROLLOUT_ENDS = (Phase.PROMOTED, Phase.ROLLED_BACK)


def age_s(since: datetime | None, now: datetime) -> float:
    """Return the seconds since a time; 0 where it never came."""
    return max(0.0, (now - since).total_seconds()) if since else 0.0


def show_facts(facts: Facts, now: datetime) -> None:
    """Set the gauges of requests, runs, gates, rollouts, and what is on hold."""
    show_requests(facts.requests, now)
    show_runs(facts.runs, now)
    show_gates(facts)
    for phase in Phase:
        metrics.ROLLOUTS.labels(phase).set(facts.rollouts.get(phase, NONE).num)
    show_ends(metrics.ROLLOUT_ENDED_AT, facts.rollouts, ROLLOUT_ENDS)
    metrics.CANARY_UNREADY_SECONDS.set(age_s(facts.unready_since, now))
    metrics.FREEZE_AGE_SECONDS.set(age_s(facts.frozen_since, now))
    metrics.WAITING_DEAD_LETTERS.set(facts.num_dead_letters)
    show_stable(facts.stable)


def show_requests(requests: Mapping[str, Group], now: datetime) -> None:
    """Set the gauges of retrain requests."""
    pending = [requests.get(status, NONE) for status in PENDING]
    for status, group in zip(PENDING, pending, strict=True):
        metrics.PENDING_REQUESTS.labels(status).set(group.num)
    oldest = min((group.began_at for group in pending if group.began_at), default=None)
    metrics.PENDING_REQUEST_AGE_SECONDS.set(age_s(oldest, now))
    show_ends(metrics.REQUEST_ENDED_AT, requests, REQUEST_ENDS)


def show_runs(runs: Mapping[str, Group], now: datetime) -> None:
    """Set the gauges of training runs."""
    for status in RUN_STATUSES:
        metrics.TRAINING_RUNS.labels(status).set(runs.get(status, NONE).num)
    metrics.TRAINING_RUNNING_SECONDS.set(age_s(runs.get("running", NONE).began_at, now))
    show_ends(metrics.TRAINING_ENDED_AT, runs, RUN_ENDS)


def show_ends(gauge: Gauge, groups: Mapping[str, Group], statuses: tuple[str, ...]) -> None:
    """Set when something last ended with each status; no sample where nothing did."""
    for status in statuses:
        ended_at = groups.get(status, NONE).ended_at
        if ended_at is not None:
            gauge.labels(status).set(ended_at.timestamp())


def show_gates(facts: Facts) -> None:
    """Set the counts of verdicts, and what each gate said of the newest challenger."""
    for gate in {gate for gate, _ in facts.verdicts}:
        for verdict in Verdict:
            metrics.GATE_VERDICTS.labels(gate, verdict).set(facts.verdicts.get((gate, verdict), 0))
            metrics.GATE_VERDICT.labels(gate, verdict).set(facts.newest_verdicts.get(gate) == verdict)
    if facts.judged_at is not None:
        metrics.GATES_JUDGED_AT.set(facts.judged_at.timestamp())


def show_stable(stable: tuple[str, datetime] | None) -> None:
    """Set which version is stable, and drop the one that was."""
    if stable is None:
        return
    version, since = stable
    metrics.STABLE_MODEL.labels(version).set(1)
    shown = {sample.labels["model_version"] for metric in metrics.STABLE_MODEL.collect() for sample in metric.samples}
    for former in shown - {version}:
        metrics.STABLE_MODEL.remove(former)
    metrics.STABLE_SINCE.set(since.timestamp())


def show_settings(settings: Settings) -> None:
    """Set the gauges of settings that alerts compare with."""
    metrics.OBSERVE_MODE.set(settings.mode == "observe")
    metrics.PLAN_TTL_SECONDS.set(settings.rollout.plan_ttl_s)


def show_drift(streams: Mapping[str, drift.Stream], threshold_log: float) -> None:
    """Set the evidence and the means of each stream; those of a stream without a baseline say that nothing is known."""
    metrics.DRIFT_THRESHOLD_LOG.set(threshold_log)
    for name, stream in streams.items():
        mean = drift.baseline_mean(stream)
        metrics.DRIFT_BASELINE_RATIO.labels(name).set(len(stream.early) / stream.num_baseline)
        metrics.DRIFT_LOG_E.labels(name).set(drift.evidence(stream))
        metrics.DRIFT_MEAN.labels(name, "baseline").set(float("nan") if mean is None else mean)
        metrics.DRIFT_MEAN.labels(name, "recent").set(stream.recent.mean() if len(stream.recent) else float("nan"))
