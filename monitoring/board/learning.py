"""Panels of the way from feedback to a new model. Each says what to do when it does not look right."""

from monitoring.board.parts import Panel, Query, Row, latest, rate

NOW = Row(
    "Is the loop turning?",
    (
        Panel(
            title="Toward the next retraining",
            kind="bargauge",
            unit="percentunit",
            width=6,
            height=5,
            low=0,
            high=1,
            description="New trainable pairs as a share of the threshold. Stands still: look at the funnel below. At "
            "100 % for an hour: see the alert ThresholdIgnored.",
            queries=(
                Query(f"{latest('hone_new_pairs', 'pairs')} / {latest('hone_trigger_min_pairs', 'pairs')}", "pairs"),
            ),
        ),
        Panel(
            title="Pairs short",
            kind="stat",
            unit="short",
            width=3,
            height=5,
            description="Pairs that are missing. Too many for your traffic: lower `trigger.min_pairs`, or ask people "
            "more.",
            queries=(
                Query(
                    f"clamp_min({latest('hone_trigger_min_pairs', 'pairs')} - {latest('hone_new_pairs', 'pairs')}, 0)",
                    "short",
                ),
            ),
        ),
        Panel(
            title="On hold",
            kind="stat",
            unit="short",
            width=4,
            height=5,
            steps=(("orange", 1),),
            description="1 where observe mode or a freeze holds the loop. `hone status` says who froze it and why; "
            "`hone unfreeze`, or HONE_MODE=active, lets it go on.",
            queries=(
                Query(latest("hone_observe_mode", "monitor"), "observe mode"),
                Query(f"{latest('hone_freeze_age_seconds', 'monitor')} > bool 0", "frozen"),
            ),
        ),
        Panel(
            title="Stable model",
            kind="stat",
            unit="dateTimeFromNow",
            width=5,
            height=5,
            text_mode="value_and_name",
            description="The version that serves, and since when. Old though retrainings succeed: their rollouts are "
            "not promoted; see the row Rollout.",
            queries=(
                Query(
                    'max by (model_version) (hone_stable_model_info{job="monitor"}) * on () group_left () '
                    f"{latest('hone_stable_since_timestamp_seconds', 'monitor')} * 1000",
                    "{{model_version}}",
                ),
            ),
        ),
        Panel(
            title="Programs",
            kind="stat",
            unit="short",
            width=6,
            height=5,
            description="Instances that answer. 0: read that program's log and restart it; nothing acknowledged is "
            "lost.",
            queries=(Query('sum by (job) (up{job=~"gateway|runtime|ingest|pairs|controller|monitor"})', "{{job}}"),),
        ),
    ),
)


FUNNEL = Row(
    "Feedback funnel",
    (
        Panel(
            title="From answers to pairs",
            unit="ops",
            description="Each step per second. Where one line falls and the one above does not, look between the "
            "two: client, gateway, ingest, pair worker.",
            queries=(
                Query(rate("hone_chat_answers_total", "gateway", where='outcome="completed"'), "answers"),
                Query(rate("hone_feedback_accepted_total", "gateway"), "feedback accepted"),
                Query(rate("hone_ingest_events_total", "ingest", where='kind!="response"'), "feedback stored"),
                Query(rate("hone_pairs_changed_total", "pairs", where='change="created"'), "pairs"),
                Query(rate("hone_labels_changed_total", "pairs", where='change="created"'), "labels"),
            ),
        ),
        Panel(
            title="Feedback by kind",
            unit="ops",
            description="Accepted events. One kind gone while others stay: that button or field of the app is broken.",
            queries=(Query(rate("hone_feedback_accepted_total", "gateway", "kind"), "{{kind}}"),),
        ),
        Panel(
            title="Feedback per answer",
            unit="percentunit",
            low=0,
            description="Share of answers that get feedback, over an hour, beside the same time yesterday. A fall to "
            "a fifth raises FeedbackDriedUp while the monitor has too little past for FeedbackFellSilent.",
            queries=(
                Query("hone:feedback_per_answer:ratio_rate1h", "now"),
                Query("hone:feedback_per_answer:ratio_rate1h offset 1d or vector(0)", "a day ago", line=True),
            ),
        ),
        Panel(
            title="New pairs and the threshold",
            unit="short",
            low=0,
            description="Falls to zero when a retraining claims them. Flat for days: see which kind of feedback is "
            "missing.",
            queries=(
                Query(latest("hone_new_pairs", "pairs"), "new pairs"),
                Query(latest("hone_trigger_min_pairs", "pairs"), "threshold", line=True),
            ),
        ),
        Panel(
            title="Pairs by source",
            unit="ops",
            description="Created, changed and retracted. Many retractions: people change their minds, or a client "
            "sends votes twice.",
            queries=(Query(rate("hone_pairs_changed_total", "pairs", "source", "change"), "{{source}} {{change}}"),),
        ),
        Panel(
            title="Refused, dead, orphaned",
            unit="short",
            low=0,
            description="Refused feedback a second, dead letters that wait (`hone dead-letters`), and answers that "
            "got feedback but never arrived. Any of them rising: see the reason in the program's log.",
            queries=(
                Query(f"{rate('hone_feedback_rejected_total', 'gateway', 'reason')}", "refused: {{reason}}"),
                Query(latest("hone_waiting_dead_letters", "monitor"), "dead letters"),
                Query(f"{rate('hone_ingest_dead_letters_total', 'ingest', 'reason')}", "dead: {{reason}}"),
                Query(latest("hone_orphan_feedback", "pairs"), "orphans"),
            ),
        ),
    ),
)


TRAINING = Row(
    "Retraining and gates",
    (
        Panel(
            title="Requests",
            unit="short",
            low=0,
            description="Open and claimed requests. Open for long: Airflow does not look, or hone is frozen.",
            queries=(
                Query(latest("hone_pending_requests", "monitor", "status"), "{{status}}"),
                Query(
                    'sum(increase(hone_retrain_requests_total{job="pairs"}[1h]))', "asked for by the threshold (1 h)"
                ),
            ),
        ),
        Panel(
            title="How long",
            unit="s",
            low=0,
            description="Age of the oldest request, and of the run that trains now. Beyond the usual: see the DAG "
            "`retrain` in Airflow.",
            queries=(
                Query(latest("hone_pending_request_age_seconds", "monitor"), "oldest request"),
                Query(latest("hone_training_running_seconds", "monitor"), "training"),
            ),
        ),
        Panel(
            title="The run that trains now",
            unit="percentunit",
            low=0,
            description="Steps done, share of time that waits for rows (PPO: for answers), and MFU where the device's "
            "peak is known (`launch.peak_tflops`). Waiting above a tenth with rows on a slow disk: move them; MFU "
            "below 0.3: larger micro batches.",
            queries=(
                Query(latest("hone_training_progress_ratio", "monitor"), "steps done"),
                Query(latest("hone_training_wait_ratio", "monitor"), "waiting"),
                Query(latest("hone_training_mfu_ratio", "monitor"), "MFU"),
            ),
        ),
        Panel(
            title="Tokens a second",
            unit="short",
            low=0,
            description="Tokens of prompts and answers that the present run trains on. Falls within a run: another "
            "program took the device, or answers grow (see the run's curves.png).",
            queries=(Query(latest("hone_training_tokens_per_second", "monitor"), "tokens/s"),),
        ),
        Panel(
            title="Memory of the training",
            unit="bytes",
            low=0,
            description="Largest so far, of the process and of its GPU. Near the device's: lower micro_batch_size or "
            "max_length, or turn gradient_checkpointing on; `hone plan` has the arithmetic.",
            queries=(Query(f"{latest('hone_training_memory_bytes', 'monitor', 'of')} > 0", "{{of}}"),),
        ),
        Panel(
            title="Last ended",
            kind="stat",
            unit="dateTimeFromNow",
            description="When a request and a run last ended, and how. Failed later than done: `hone status` says why.",
            queries=(
                Query(
                    f"{latest('hone_request_ended_timestamp_seconds', 'monitor', 'status')} * 1000",
                    "request {{status}}",
                ),
                Query(
                    f"{latest('hone_training_ended_timestamp_seconds', 'monitor', 'status')} * 1000", "run {{status}}"
                ),
            ),
        ),
        Panel(
            title="The newest challenger at its gates",
            kind="stat",
            unit="dateTimeFromNow",
            text_mode="value_and_name",
            description="What each gate said, and when. Fail: it gets no traffic. Inconclusive: `hone status` says "
            "what data is missing.",
            queries=(
                Query(
                    '(max by (gate, verdict) (hone_gate_verdict{job="monitor"}) == 1) * on () group_left () '
                    f"{latest('hone_gates_judged_timestamp_seconds', 'monitor')} * 1000",
                    "{{gate}}: {{verdict}}",
                ),
            ),
        ),
        Panel(
            title="Verdicts so far",
            kind="bargauge",
            unit="short",
            description="A gate that never fails may be too loose; one that always says inconclusive lacks data.",
            queries=(
                Query(f"{latest('hone_gate_verdicts', 'monitor', 'gate', 'verdict')} > 0", "{{gate}} {{verdict}}"),
            ),
        ),
        Panel(
            title="Runs and rollouts so far",
            kind="bargauge",
            unit="short",
            description="How runs and rollouts ended. More failed than done: read the newest failure in `hone status`.",
            queries=(
                Query(latest("hone_training_runs", "monitor", "status"), "run {{status}}"),
                Query(f"{latest('hone_rollouts', 'monitor', 'phase')} > 0", "rollout {{phase}}"),
            ),
        ),
    ),
)
