"""The overview in words: a few lines, the most asked first. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hone.cli.output import duration
from hone.trigger import MIN_RECENT

Facts = Mapping[str, Any]
WIDTH = 12
HOUR_S = 3600.0


def lines(facts: Facts, now: datetime) -> list[str]:
    """Return the lines of `hone status` below the parts."""
    rows = [
        ("mode", mode_text(facts["mode"])),
        ("freeze", freeze_text(facts["freeze"])),
        ("retraining", trigger_text(facts["pairs"], now)),
        *(("request", request_text(request, now)) for request in facts["requests"]),
        ("last run", run_text(facts["last_run"])),
        ("stable", stable_text(facts["stable"])),
        *rollout_rows(facts["rollout"], facts["last_rollout"], now),
        ("capture", capture_text(facts["capture"])),
        ("orphans", orphans_text(facts["orphans"])),
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


def trigger_text(pairs: Facts, now: datetime) -> str:
    """Say how far the next retraining is."""
    if not pairs["missing"]:
        return str(pairs["reason"])
    since = pairs["counting_since"]
    counted_s = (now - since).total_seconds() if since else HOUR_S
    few = few_text(pairs["num_recent"], counted_s)
    to_go = f"about {duration(pairs['eta_s'])} to go" if pairs["eta_s"] is not None else few
    return f"{pairs['missing']} pairs short ({pairs['num_pairs']} of {pairs['min_pairs']}), {to_go}"


def few_text(num_recent: int, counted_s: float) -> str:
    """Say why no time to go is told, where pairs have been counted for so long since the last retraining took its."""
    if counted_s < HOUR_S:
        return f"too early to tell when: the last retraining took its pairs {duration(counted_s)} ago"
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


def orphans_text(found: Facts, when: str = "of the last 7 days ") -> str:
    """Say that feedback waits for answers that never came, and what to do; nothing where none does."""
    if not found["num_events"]:
        return ""
    unsigned = f" ({found['num_unsigned']} unsigned)" if found["num_unsigned"] else ""
    acts, answers = counted(found["num_events"], "act"), counted(found["num_answers"], "answer")
    return (
        f"{acts} of feedback{unsigned} {when}on {answers} that hone does not have: nothing comes of them. Send the "
        "answers too, under the ids that feedback names (docs/pairs.md, Feedback without its answer)"
    )


def counted(number: int, noun: str) -> str:
    """Return `1 act` or `2 acts`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


EDIT_FAULTS = {
    "too_far": "changed more than {edit_max_distance:.0%} of the words: another text and no correction "
    "(pairs.edit_max_distance)",
    "unchanged": "changed less than {edit_min_distance:.0%} of the words (pairs.edit_min_distance)",
    "no_answer": "are of answers that hone does not have",
    "not_counted": "are of answers that did not end, that nobody saw, or that were erased",
    "waiting": "wait for the pair worker",
    "other": "are of turns with more than eight answers, or were judged by other settings",
}


def edits_text(faults: Mapping[str, int], policy: Mapping[str, Any]) -> list[str]:
    """Say of how many edits no pair came, and why; nothing where every edit made one."""
    if not faults:
        return []
    known = [(faults[name], text.format(**policy)) for name, text in EDIT_FAULTS.items() if name in faults]
    return [f"no pair came of {counted(sum(faults.values()), 'edit')}:", *(f"  {n} {text}" for n, text in known)]


def backlog_text(dirty: Facts, dead: Mapping[str, int]) -> str:
    """Say what waits, and what was refused; nothing where all is done."""
    parts = []
    if dirty["num"]:
        parts.append(f"{dirty['num']} turns wait for the pair worker, the oldest for {duration(dirty['oldest_s'])}")
    if dead:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dead.items()))
        parts.append(f"dead letters that wait: {reasons} (`hone dead-letters list --waiting`)")
    return " · ".join(parts)
