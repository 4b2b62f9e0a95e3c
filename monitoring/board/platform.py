"""Panels of the programs themselves. Each says what to do when it does not look right."""

from monitoring.board.parts import Panel, Query, Row, latest, quantiles, rate

PLATFORM = Row(
    "Platform",
    (
        Panel(
            title="Requests of the gateway",
            unit="reqps",
            low=0,
            description="By route and code. 5xx: 502 is the model server, 503 the broker or too many at a time.",
            queries=(
                Query(rate("hone_gateway_requests_total", "gateway", "route", "code"), "{{route}} {{code}}"),
                Query('sum(hone_gateway_in_flight{job="gateway"})', "chats in flight"),
            ),
        ),
        Panel(
            title="Error budget",
            unit="percentunit",
            low=0,
            description="Share of requests answered with 5xx. Above the first line for an hour, the month's budget "
            "is gone in two days.",
            queries=(
                Query("hone:gateway_errors:ratio_rate5m", "5 minutes"),
                Query("hone:gateway_errors:ratio_rate30m", "30 minutes"),
                Query("hone:gateway_errors:ratio_rate1h", "1 hour"),
                Query("hone:gateway_errors:ratio_rate6h", "6 hours"),
                Query("vector(14.4 * 0.005)", "page", line=True),
            ),
        ),
        Panel(
            title="Gateway: added time",
            unit="s",
            low=0,
            description="What the gateway adds to a chat, and feedback from arrival to answer. High: no CPU left, or "
            "a slow broker.",
            queries=(
                Query(quantiles("hone_chat_overhead_seconds", "gateway", share=0.5), "chat, half"),
                Query(quantiles("hone_chat_overhead_seconds", "gateway", share=0.99), "chat, 99 %"),
                Query(quantiles("hone_feedback_seconds", "gateway", share=0.99), "feedback, 99 %"),
            ),
        ),
        Panel(
            title="First byte by arm",
            unit="s",
            low=0,
            description="Time until people see the answer begin. High with a low queue: the model; with a long "
            "queue: more runtimes.",
            queries=(
                Query(quantiles("hone_chat_first_byte_seconds", "gateway", "track", share=0.5), "{{track}}, half"),
                Query(quantiles("hone_chat_first_byte_seconds", "gateway", "track", share=0.95), "{{track}}, 95 %"),
            ),
        ),
        Panel(
            title="Runtime",
            unit="short",
            low=0,
            description="Rows that wait, rows in a batch on average, models loaded. A growing queue: more runtimes, "
            "or shorter answers.",
            queries=(
                Query('sum(hone_runtime_queue_rows{job="runtime"})', "waiting"),
                Query(
                    f"{rate('hone_runtime_batch_rows_sum', 'runtime')} "
                    f"/ {rate('hone_runtime_batch_rows_count', 'runtime')}",
                    "rows in a batch",
                ),
                Query('sum(hone_runtime_models{job="runtime"})', "models"),
            ),
        ),
        Panel(
            title="Tokens",
            unit="short",
            low=0,
            description="Tokens a second, and answers by why they ended. Many `length`: answers are cut off, and "
            "cut-off answers never train.",
            queries=(
                Query(rate("hone_runtime_tokens_total", "runtime", "part"), "{{part}} tokens"),
                Query(rate("hone_runtime_answers_total", "runtime", "finish_reason"), "answers: {{finish_reason}}"),
            ),
        ),
        Panel(
            title="Behind Kafka",
            unit="s",
            low=0,
            description="Age of the newest message stored. It rises: Postgres is slow, or start a second ingest.",
            queries=(
                Query(latest("hone_ingest_lag_seconds", "ingest"), "behind"),
                Query(quantiles("hone_ingest_stage_seconds", "ingest", "stage", share=0.95), "batch: {{stage}}"),
            ),
        ),
        Panel(
            title="Messages behind",
            unit="short",
            low=0,
            description="Messages that wait, by topic, and messages that were there already or that no stream reads. "
            "One partition alone: its consumer hangs.",
            queries=(
                Query('sum by (topic) (hone_ingest_lag_messages{job="ingest"})', "{{topic}}"),
                Query(rate("hone_ingest_duplicates_total", "ingest"), "duplicates (1/s)"),
                Query(f"{rate('hone_ingest_skipped_total', 'ingest')} or vector(0)", "passed over (1/s)"),
            ),
        ),
        Panel(
            title="Dirty turns",
            unit="short",
            low=0,
            description="Turns whose pairs are to be derived again, the oldest's age in seconds, and a batch's time. "
            "Rising: start a second pair worker.",
            queries=(
                Query(latest("hone_dirty_turns", "pairs"), "turns"),
                Query(latest("hone_dirty_turn_age_seconds", "pairs"), "oldest (s)"),
                Query(quantiles("hone_pairs_batch_seconds", "pairs", share=0.95), "batch, 95 % (s)"),
            ),
        ),
        Panel(
            title="Broker away",
            unit="bytes",
            low=0,
            description="Answers that wait on disk because Kafka does not take them. Bring the broker back; they are "
            "sent then.",
            queries=(Query('sum by (instance) (hone_spill_bytes{job="gateway"})', "{{instance}}"),),
        ),
        Panel(
            title="Trouble, counted",
            unit="short",
            low=0,
            description="Events of the last hour; all zero is normal. Lost answers and gaps are loss: see the alerts "
            "of these names.",
            queries=(
                Query('sum(increase(hone_spilled_responses_total{job="gateway"}[1h]))', "answers spilled"),
                Query('sum(increase(hone_lost_responses_total{job="gateway"}[1h]))', "answers lost"),
                Query('sum(increase(hone_shadow_dropped_total{job="gateway"}[1h]))', "shadow copies dropped"),
                Query(
                    'sum(increase(hone_response_hook_calls_total{job="gateway",result!~"allowed|replaced|withheld"}[1h]))'
                    " or vector(0)",
                    "response hook failed",
                ),
                Query('sum(increase(hone_ingest_retries_total{job="ingest"}[1h]))', "waits of ingest"),
                Query('sum(increase(hone_ingest_fenced_commits_total{job="ingest"}[1h]))', "batches fenced"),
                Query('sum(hone_ingest_retention_gaps_total{job="ingest"}) or vector(0)', "gaps"),
                Query(
                    'sum(increase(hone_monitor_failures_total{job="monitor"}[1h])) or vector(0)', "monitor's failures"
                ),
            ),
        ),
        Panel(
            title="Controller",
            unit="s",
            low=0,
            description="Time of a look, and looks that failed, by reason. No leader: start the controller. Failing: "
            "its log names the router, runtime or database.",
            queries=(
                Query(quantiles("hone_reconcile_seconds", "controller", share=0.95), "look, 95 %"),
                Query(
                    f"{rate('hone_reconcile_failures_total', 'controller', 'reason')} or vector(0)",
                    "failed: {{reason}} (1/s)",
                ),
                Query('sum(hone_controller_leader{job="controller"})', "leaders"),
            ),
        ),
        Panel(
            title="Plans at the gateways",
            unit="s",
            low=0,
            description="Time since a gateway took a plan. Above the limit its canary gets nothing: see the "
            "controller.",
            queries=(
                Query('max by (instance) (hone_plan_age_seconds{job="gateway"})', "{{instance}}"),
                Query(latest("hone_plan_ttl_seconds", "monitor"), "limit", line=True),
            ),
        ),
        Panel(
            title="Fence and broken glass",
            kind="stat",
            unit="short",
            description="The plan's number must be one on all gateways. Broken glass stays until a new rollout: that "
            "one rollout's canary gets nothing.",
            queries=(
                Query('count(count_values("fence", hone_plan_fence{job="gateway"}))', "different plans"),
                Query(latest("hone_broken_glass_rollouts", "gateway"), "broken glass"),
            ),
        ),
        Panel(
            title="The monitor itself",
            unit="s",
            low=0,
            description="Time of a look at the database, and since the last that succeeded. Old: this dashboard's "
            "database figures are old too.",
            queries=(
                Query(quantiles("hone_monitor_seconds", "monitor", share=0.95), "look, 95 %"),
                Query("time() - " + latest("hone_monitor_success_timestamp_seconds", "monitor"), "since the last"),
            ),
        ),
    ),
)
