"""The overview in words: a few lines, the most asked first. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hone.cli.output import duration
from hone.trigger import MIN_RECENT

Facts = Mapping[str, Any]
WIDTH = 12


def lines(facts: Facts, now: datetime) -> list[str]:
    """Return the lines of `hone status` below the parts."""
    rows = [
        ("mode", mode_text(facts["mode"])),
        ("freeze", freeze_text(facts["freeze"])),
        ("retraining", trigger_text(facts["pairs"])),
        *(("request", request_text(request, now)) for request in facts["requests"]),
        ("last run", run_text(facts["last_run"])),
        ("stable", stable_text(facts["stable"])),
        *rollout_rows(facts["rollout"], facts["last_rollout"], now),
        ("capture", capture_text(facts["capture"])),
        ("backlog", backlog_text(facts["dirty_turns"], facts["dead_letters"])),
    ]
    return [f"{name:<{WIDTH}}{text}" for name, text in rows if text]


def mode_text(mode: str) -> str:
    """Say what the mode means."""
    return "active" if mode == "active" else "observe (collects and reports; trains nothing, touches no traffic)"


def freeze_text(freeze: Facts | None) -> str:
    """Say who froze the platform and why; nothing where nobody did."""
    if freeze is None:
        return ""
    return f"FROZEN since {freeze['since']:%Y-%m-%d %H:%M} by {freeze['actor']}: {freeze['reason']}"


def trigger_text(pairs: Facts) -> str:
    """Say how far the next retraining is."""
    if not pairs["missing"]:
        return str(pairs["reason"])
    to_go = f"about {duration(pairs['eta_s'])} to go" if pairs["eta_s"] is not None else few_text(pairs["num_recent"])
    return f"{pairs['missing']} pairs short ({pairs['num_pairs']} of {pairs['min_pairs']}), {to_go}"


def few_text(num_recent: int) -> str:
    """Say why no time to go is told."""
    if num_recent == 0:
        return "no new ones in the last hour"
    return f"too few in the last hour to tell when ({num_recent} of the {MIN_RECENT} that it takes)"


def request_text(request: Facts, now: datetime) -> str:
    """Say that a request waits, or who works on it."""
    age = duration((now - request["created_at"]).total_seconds())
    by = f" by {request['dag_run_id']}" if request["dag_run_id"] else ""
    return f"{request['status']}{by} for {age} · {request['method']} · {request['reason']}"


def run_text(run: Facts | None) -> str:
    """Say how the last run ended and what the gates said."""
    if run is None:
        return "none yet"
    head = f"{run['run_id']} {run['status']}"
    if run["finished_at"]:
        head += f" in {duration((run['finished_at'] - run['started_at']).total_seconds())}"
    if run["detail"]:
        head += f" · {run['detail'].splitlines()[0]}"
    if run["model_version"]:
        head += f" · {run['model_version']} {run['model_status']}"
    held = [f"{gate['gate']} {gate['verdict']}: {gate['reason']}" for gate in run["gates"] if gate["verdict"] != "pass"]
    return " · ".join([head, *held])


def stable_text(stable: Facts | None) -> str:
    """Say which model serves."""
    if stable is None:
        return "no model yet: `hone models add DIR --stable`"
    erased = " · trained on somebody who was erased since: retrain" if stable["contains_erased"] else ""
    return f"{stable['model_version']} since {stable['since']:%Y-%m-%d %H:%M}{erased}"


def rollout_rows(live: Facts | None, last: Facts | None, now: datetime) -> list[tuple[str, str]]:
    """Return the lines of the live rollout, else one of the last."""
    if live is None and last is None:
        return [("rollout", "none yet")]
    if live is None:
        assert last is not None
        return [("rollout", f"none live; the last, of {last['canary']}, was {last['phase']}: {last['reason']}")]
    return [("rollout", place_text(live, now)), ("evidence", evidence_text(live))]


def place_text(rollout: Facts, now: datetime) -> str:
    """Say which model meets how much traffic, and since when."""
    age = duration((now - rollout["stage_started_at"]).total_seconds())
    force = "" if rollout["in_force"] else " (not yet in force everywhere)"
    if rollout.get("watches"):
        share = f"keeps {rollout['weight']:.0%} to watch its successor"
        return f"{rollout['canary']} {share}, {rollout['phase']} for {age}{force}"
    if rollout.get("waits_for_approval"):
        return f"{rollout['canary']} waits for a person for {age}: `hone rollout approve --reason …`"
    stage = f"stage {rollout['stage'] + 1} of {rollout['num_stages']}"
    return f"{rollout['canary']} {rollout['phase']} at {rollout['weight']:.0%}, {stage} for {age}{force}"


def held_text(rollout: Facts) -> str:
    """Say what holds a live rollout at weight 0, whatever its evidence; nothing where nothing does."""
    if rollout["ended_at"] is not None:
        return ""
    if freeze := freeze_text(rollout["freeze"]):
        return f"{freeze}; the canary gets nothing until `hone unfreeze`"
    if rollout["mode"] != "active":
        return f"mode is {rollout['mode']}: the canary is loaded, and gets no traffic before HONE_MODE=active"
    return ""


def evidence_text(rollout: Facts) -> str:
    """Say how far the sequential test is."""
    e_value = rollout["e_value"]
    if not rollout["num_pairs"] or e_value is None:
        return f"no pair of users closed yet; promoted at an e-value of {rollout['e_target']:.0f}"
    effect = "" if rollout["effect"] is None else f", canary {rollout['effect']:+.1%}"
    span = f" ({rollout['effect_low']:+.1%} to {rollout['effect_high']:+.1%})" if effect else ""
    return (
        f"e-value {e_value:.3g} of {rollout['e_target']:.0f} after {rollout['num_pairs']} pairs of users "
        f"(at most {rollout['horizon_pairs']}){effect}{span}"
    )


def late_text(late: int) -> str:
    """Say how many users rated too late to count; nothing where nobody did."""
    return f"{late:,} users rated after their window had ended, and do not count (outcome_window_s)" if late else ""


def past_text(evidence: Facts) -> str:
    """Say how requests past the gateways are split, and how many came so; nothing where only gateways split."""
    past = evidence.get("past_gateways")
    if not past or not past["weights"]:
        return ""
    requests = past["requests"]
    counted = {name: "" if requests is None else f", {requests.get(name, 0):,} requests" for name in past["weights"]}
    shares = [f"{name} {share:.1%}{counted[name]}" for name, share in sorted(past["weights"].items())]
    return " · ".join(shares) + ("" if requests is not None else " (nobody counts them: seldon.prometheus_url)")


def capture_text(kinds: Sequence[Facts]) -> str:
    """Say which kinds of feedback come in as usual, and which do not."""
    judged = [kind for kind in kinds if kind["baseline"] >= 1]
    if not judged:
        return "no past of a week yet, with feedback enough to notice when it stops"
    silent = [
        f"{kind['kind']} FELL SILENT: {kind['seen']:.0f} in 24 hours where {kind['usual']:.0f} are usual"
        for kind in judged
        if kind["is_broken"]
    ]
    usual = [kind["kind"] for kind in judged if not kind["is_broken"]]
    return " · ".join([*silent, *([f"{', '.join(usual)} as usual"] if usual else [])])


def backlog_text(dirty: Facts, dead: Mapping[str, int]) -> str:
    """Say what waits, and what was refused; nothing where all is done."""
    parts = []
    if dirty["num"]:
        parts.append(f"{dirty['num']} turns wait for the pair worker, the oldest for {duration(dirty['oldest_s'])}")
    if dead:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dead.items()))
        parts.append(f"dead letters that wait: {reasons} (`hone dead-letters list --waiting`)")
    return " · ".join(parts)
