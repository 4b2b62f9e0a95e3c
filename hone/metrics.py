"""Metrics of the programs, each defined once. Labels take few values: never a user, a response or a key."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.samples import Sample

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OVERHEAD_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class Fact(Gauge):
    """A gauge that is absent until it is set: no program but the one that knows says 0."""

    is_set = False

    def set(self, value: float) -> None:
        """Set it, and show it from now on."""
        super().set(value)
        self.is_set = True

    def _child_samples(self) -> Iterable[Sample]:
        return super()._child_samples() if self.is_set else ()


# Gateway ------------------------------------------------------------------------------------------------------------

GATEWAY_REQUESTS = Counter("hone_gateway_requests_total", "Requests answered.", ["route", "code"])
GATEWAY_IN_FLIGHT = Gauge("hone_gateway_in_flight", "Chat requests being answered now.")
CHAT_SECONDS = Histogram("hone_chat_seconds", "Chat: arrival to last byte.", ["track"], buckets=SECONDS)
CHAT_FIRST_BYTE_SECONDS = Histogram(
    "hone_chat_first_byte_seconds", "Chat: arrival to first byte of the answer.", ["track"], buckets=SECONDS
)
CHAT_OVERHEAD_SECONDS = Histogram(
    "hone_chat_overhead_seconds", "Chat: time that the gateway added to the upstream's.", buckets=OVERHEAD_SECONDS
)
CHAT_ANSWERS = Counter(
    "hone_chat_answers_total",
    "Answers by the arm that gave them; `failed` and `partial` did not complete, `left`: the client left before.",
    ["track", "outcome"],
)
CHAT_FALLBACKS = Counter("hone_chat_fallbacks_total", "Canary failures before the first byte, answered by stable.")
HOOK_CALLS = Counter(
    "hone_response_hook_calls_total",
    "Answers for the response hook: allowed, replaced, withheld; timeout, unreachable, invalid (failed); skipped.",
    ["result"],
)
HOOK_SECONDS = Histogram("hone_response_hook_seconds", "Response hook: asked to answered.", buckets=SECONDS)
SHADOW_DROPPED = Counter("hone_shadow_dropped_total", "Shadow copies dropped because the queue was full.")
FEEDBACK_ACCEPTED = Counter(
    "hone_feedback_accepted_total", "Feedback events that the broker acknowledged.", ["kind", "signed"]
)
FEEDBACK_REJECTED = Counter("hone_feedback_rejected_total", "Feedback requests refused.", ["reason"])
FEEDBACK_SECONDS = Histogram("hone_feedback_seconds", "Feedback: arrival to answer.", buckets=SECONDS)
SPILLED_RESPONSES = Counter("hone_spilled_responses_total", "Responses written to the spill file.")
LOST_RESPONSES = Counter("hone_lost_responses_total", "Responses that neither Kafka nor the disk took.")
SPILL_BYTES = Gauge("hone_spill_bytes", "Size of the responses on disk that wait for Kafka.")
PLAN_AGE_SECONDS = Gauge("hone_plan_age_seconds", "Time since the router took a plan; NaN before the first one.")
PLAN_FENCE = Gauge("hone_plan_fence", "Fence of the plan in force.")
CANARY_WEIGHT_RATIO = Gauge("hone_canary_weight_ratio", "Share of users that the canary answers now, 0 to 1.")
BROKEN_GLASS = Gauge("hone_broken_glass_rollouts", "Rollouts stopped by break-glass.")

# Runtime ------------------------------------------------------------------------------------------------------------

RUNTIME_ANSWERS = Counter("hone_runtime_answers_total", "Answers generated.", ["finish_reason"])
RUNTIME_TOKENS = Counter("hone_runtime_tokens_total", "Tokens read (prompt) and generated (completion).", ["part"])
RUNTIME_BATCH_ROWS = Histogram("hone_runtime_batch_rows", "Rows of one batch.", buckets=(1, 2, 4, 8, 12, 16))
RUNTIME_QUEUE = Gauge("hone_runtime_queue_rows", "Rows that wait for a batch.")
RUNTIME_MODELS = Gauge("hone_runtime_models", "Models loaded.")

# Ingest -------------------------------------------------------------------------------------------------------------

INGEST_EVENTS = Counter("hone_ingest_events_total", "Rows stored, by feedback kind and `response`.", ["kind"])
INGEST_DUPLICATES = Counter("hone_ingest_duplicates_total", "Messages whose row was there already.")
INGEST_DEAD_LETTERS = Counter("hone_ingest_dead_letters_total", "Messages that became dead letters.", ["reason"])
INGEST_SKIPPED = Counter("hone_ingest_skipped_total", "Messages that no stream of a foreign topic reads.", ["topic"])
INGEST_STAGE_SECONDS = Histogram(
    "hone_ingest_stage_seconds", "One batch: consume (waiting included), decode, store.", ["stage"], buckets=SECONDS
)
INGEST_LAG_MESSAGES = Gauge("hone_ingest_lag_messages", "Messages behind the end of the log.", ["topic", "partition"])
INGEST_LAG_SECONDS = Gauge("hone_ingest_lag_seconds", "Age of the newest message stored; 0 when none waits.")
INGEST_FENCED = Counter("hone_ingest_fenced_commits_total", "Batches dropped because a partition had a newer owner.")
INGEST_RETRIES = Counter("hone_ingest_retries_total", "Waits for Postgres or Kafka, after which a batch is read again.")
INGEST_RETENTION_GAPS = Counter(
    "hone_ingest_retention_gaps_total", "Times that messages were gone before they were read.", ["topic"]
)

# Pairs --------------------------------------------------------------------------------------------------------------

PAIRS_CHANGED = Counter(
    "hone_pairs_changed_total", "Preference pairs created (or back again), changed and retracted.", ["source", "change"]
)
LABELS_CHANGED = Counter("hone_labels_changed_total", "Unary labels written or retracted.", ["change"])
PAIRS_SECONDS = Histogram("hone_pairs_batch_seconds", "One batch of dirty turns.", buckets=SECONDS)
DIRTY_TURNS = Fact("hone_dirty_turns", "Turns whose pairs must be derived again.")
DIRTY_TURN_AGE_SECONDS = Fact("hone_dirty_turn_age_seconds", "Age of the oldest of them; 0 when there is none.")
ORPHAN_FEEDBACK = Fact("hone_orphan_feedback", "Subjects with feedback of a valid token whose answer never arrived.")
NEW_PAIRS = Fact("hone_new_pairs", "Trainable pairs since the last retraining.")
MIN_PAIRS = Fact("hone_trigger_min_pairs", "New pairs at which a retraining is asked for.")
RETRAIN_REQUESTS = Counter("hone_retrain_requests_total", "Retrainings asked for by the threshold.")

# Rollout (the controller) -------------------------------------------------------------------------------------------

ROLLOUT_PHASE = Gauge("hone_rollout_phase", "1 for the phase of the live rollout, else 0.", ["phase"])
ROLLOUT_STAGE = Gauge("hone_rollout_stage", "Stage of the live rollout, from 0; -1 without one.")
ROLLOUT_WEIGHT_INTENDED = Gauge("hone_rollout_intended_weight_ratio", "Canary's share of users as decided.")
ROLLOUT_WEIGHT_OBSERVED = Gauge("hone_rollout_observed_weight_ratio", "Largest share of users in force at a router.")
ROLLOUT_USERS = Gauge("hone_rollout_users", "Users of the live rollout: assigned, closed, rated.", ["track", "state"])
ROLLOUT_PAIRS = Gauge("hone_rollout_pairs", "Pairs that the live rollout has bet on.")
ROLLOUT_LOG_WEALTH = Gauge(
    "hone_rollout_wealth_log", "Log wealth against `no better` (up) and `no worse` (down).", ["direction"]
)
ROLLOUT_LOG_TARGET = Gauge("hone_rollout_target_log", "Log wealth that promotes: ln(1/alpha).")
ROLLOUT_EFFECT = Gauge(
    "hone_rollout_effect_ratio", "Canary minus stable: mean, and bounds valid at all times.", ["bound"]
)
ROLLOUT_CHECK_LOG_E = Gauge("hone_rollout_check_log_e", "Log e-value against a sound experiment.", ["check"])
ROLLOUT_TRANSITIONS = Counter(
    "hone_rollout_transitions_total", "Changes of phase or stage that the controller made.", ["to_phase", "reason"]
)
RECONCILE_SECONDS = Histogram("hone_reconcile_seconds", "One look of the controller, start to end.", buckets=SECONDS)
RECONCILE_FAILURES = Counter("hone_reconcile_failures_total", "Looks that did not end well.", ["reason"])
CONTROLLER_LEADER = Gauge("hone_controller_leader", "1 while this controller holds the lease.")

# Monitor (what only the database knows; times are 0 or absent before the first) --------------------------------------

PENDING_REQUESTS = Gauge("hone_pending_requests", "Retrain requests that are open or claimed.", ["status"])
PENDING_REQUEST_AGE_SECONDS = Fact("hone_pending_request_age_seconds", "Age of the oldest of them; 0 without one.")
REQUEST_ENDED_AT = Gauge("hone_request_ended_timestamp_seconds", "When a retrain request last ended so.", ["status"])
TRAINING_RUNS = Gauge("hone_training_runs", "Training runs so far, by how they stand.", ["status"])
TRAINING_ENDED_AT = Gauge("hone_training_ended_timestamp_seconds", "When a training run last ended so.", ["status"])
TRAINING_RUNNING_SECONDS = Fact("hone_training_running_seconds", "Age of the run that trains now; 0 without one.")
TRAINING_PROGRESS = Gauge("hone_training_progress_ratio", "Steps done of the run that trains now; NaN without one.")
TRAINING_TOKENS = Gauge("hone_training_tokens_per_second", "Tokens that it trains on, over the last half minute.")
TRAINING_MFU = Gauge(
    "hone_training_mfu_ratio", "Its model FLOPs utilisation; NaN where the device's peak is not known, as of CPUs."
)
TRAINING_WAIT = Gauge("hone_training_wait_ratio", "Share of its time that it waits for rows (PPO: for its answers).")
TRAINING_MEMORY = Gauge("hone_training_memory_bytes", "Its largest memory so far: of the host, and of a GPU.", ["of"])
GATE_VERDICTS = Gauge("hone_gate_verdicts", "Verdicts so far.", ["gate", "verdict"])
GATE_VERDICT = Gauge("hone_gate_verdict", "1 for what the gate said of the newest challenger.", ["gate", "verdict"])
GATES_JUDGED_AT = Gauge("hone_gates_judged_timestamp_seconds", "When the newest challenger was judged.")
ROLLOUTS = Gauge("hone_rollouts", "Rollouts so far, by phase.", ["phase"])
ROLLOUT_ENDED_AT = Gauge("hone_rollout_ended_timestamp_seconds", "When a rollout last ended so.", ["phase"])
CANARY_UNREADY_SECONDS = Fact("hone_canary_unready_seconds", "How long the live rollout's canary is not loaded.")
STABLE_MODEL = Gauge("hone_stable_model_info", "1 for the version that `stable` names.", ["model_version"])
STABLE_SINCE = Gauge("hone_stable_since_timestamp_seconds", "Since when it does.")
THUMBS = Counter("hone_thumbs_total", "Signed thumbs, by the arm that answered.", ["track", "model_version", "value"])
WAITING_DEAD_LETTERS = Fact("hone_waiting_dead_letters", "Dead letters that nobody replayed or dismissed.")
FREEZE_AGE_SECONDS = Fact("hone_freeze_age_seconds", "How long hone is frozen; 0 when it is not.")
OBSERVE_MODE = Fact("hone_observe_mode", "1 where hone collects, reports, and trains nothing.")
PLAN_TTL_SECONDS = Fact("hone_plan_ttl_seconds", "Age at which a router's plan has run out (a setting).")
REWARD = Gauge("hone_reward_score", "Rewards of the newest answers of an arm.", ["track", "quantile"])
DRIFT_BASELINE_RATIO = Gauge("hone_drift_baseline_ratio", "How much of its baseline a stream has.", ["stream"])
DRIFT_LOG_E = Gauge("hone_drift_log_e", "Log evidence that a stream is not as it was at the baseline.", ["stream"])
DRIFT_THRESHOLD_LOG = Fact(
    "hone_drift_threshold_log", "Log evidence that raises the alarm: ln(events between false ones)."
)
DRIFT_MEAN = Gauge(
    "hone_drift_mean_ratio", "Mean of a stream, in [0, 1]: at the baseline, and of late.", ["stream", "of"]
)
CAPTURE_EVENTS = Gauge(
    "hone_capture_events",
    "Feedback of the last 24 hours: seen, and usual for the answers of these hours.",
    ["kind", "of"],
)
CAPTURE_LOG_E = Gauge("hone_capture_log_e", "Log evidence that less of a kind comes in than is usual.", ["kind"])
CAPTURE_THRESHOLD_LOG = Fact(
    "hone_capture_threshold_log", "Log evidence that raises the alarm: ln(hours between false ones)."
)
CAPTURE_BASELINE_RATIO = Gauge("hone_capture_baseline_ratio", "How much of its past a kind has.", ["kind"])
MONITOR_SECONDS = Histogram("hone_monitor_seconds", "One look at the database.", buckets=SECONDS)
MONITOR_FAILURES = Counter("hone_monitor_failures_total", "Looks that failed.", ["reason"])
MONITOR_SUCCEEDED_AT = Gauge("hone_monitor_success_timestamp_seconds", "When a look last succeeded.")
