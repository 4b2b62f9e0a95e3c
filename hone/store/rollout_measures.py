"""What a user's first answer under a rollout is measured by: one SQL query for each measure.

Each is a lateral query over the assignment `a` and its answer `r` that gives at most one row with `value` in [0, 1].
"""

from hone.rollout import Guardrails

THUMBS = """
SELECT (value + 1) / 2 AS value FROM feedback_state
WHERE subject_id = a.response_id AND slot = 'thumbs' AND user_id = a.user_id AND signed AND value IN (-1, 1)
"""

# A named outcome or signal: of the answer, its conversation, or the user since.
NAMED = """
SELECT value FROM feedback_state
WHERE subject_id IN (a.response_id, r.conversation_id, a.user_id) AND slot = :{slot}
  AND value BETWEEN 0 AND 1 AND occurred_at >= a.assigned_at
ORDER BY occurred_at DESC, event_id DESC LIMIT 1
"""

# The chance that the scorer's preference model gives the answer over one of reward 0.
REWARD = """
SELECT 1 / (1 + exp(-greatest(least(score, 50), -50))) AS value FROM response_score
WHERE response_id = a.response_id
"""

REFUSED = """
SELECT CASE WHEN r.finish_reason = 'content_filter' OR r.completion ~* :refusal THEN 1.0 ELSE 0.0 END AS value
"""

LENGTH = "SELECT least(length(r.completion)::float8 / :length_chars, 1.0) AS value"

# As pairs are derived: another answer of the turn is a regeneration, unless it repeats an idempotent request.
REGENERATED = """
SELECT CASE WHEN EXISTS (
    SELECT FROM response n
    WHERE n.turn_id = r.turn_id AND n.user_id = a.user_id AND n.response_id <> r.response_id
      AND n.created_at BETWEEN r.created_at AND a.assigned_at + make_interval(secs => :window_s)
      AND n.track IN ('stable', 'canary')
      AND (n.idempotency_key IS NULL OR n.idempotency_key IS DISTINCT FROM r.idempotency_key)
) OR EXISTS (
    SELECT FROM feedback_state s WHERE s.subject_id = a.response_id AND s.slot = 'regenerate' AND s.user_id = a.user_id
) THEN 1.0 ELSE 0.0 END AS value
"""

PLAIN = {"thumbs": THUMBS, "reward": REWARD, "refused": REFUSED, "length": LENGTH, "regenerated": REGENERATED}


def query_of(metric: str, slot: str) -> tuple[str, dict[str, str]]:
    """Return the query of a measure, and its parameter where it has a name of its own; `slot` names the parameter."""
    if metric in PLAIN:
        return PLAIN[metric], {}
    return NAMED.format(slot=slot), {slot: metric}


def closing_parts(goal: str, guardrails: Guardrails) -> tuple[str, str, dict[str, object]]:
    """Return the lateral joins, the JSON of the guards' measures, and the parameters, of the statement that closes.

    The goal's value is `goal.value`. A measure that is unknown of a user is left out of the JSON.
    """
    joins, names, values = [], [], dict[str, object]()
    query, own = query_of(goal, "goal")
    joins.append(f"LEFT JOIN LATERAL ({query}) goal ON true")
    values |= own
    for number, metric in enumerate(dict.fromkeys(guard.metric for guard in guardrails.metrics)):
        query, own = query_of(metric, f"slot_{number}")
        joins.append(f"LEFT JOIN LATERAL ({query}) m{number} ON true")
        names.append(f"CAST(:name_{number} AS text), m{number}.value")
        values |= own | {f"name_{number}": metric}
    used = "\n".join(joins)
    fixed = {"refusal": guardrails.refusal, "length_chars": guardrails.length_chars}
    values |= {name: value for name, value in fixed.items() if f":{name}" in used}
    return used, f"jsonb_strip_nulls(jsonb_build_object({', '.join(names)}))", values
