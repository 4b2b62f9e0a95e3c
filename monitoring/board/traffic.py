"""Panels of live traffic: rollouts, what people say, and drift. Each says what to do."""

from monitoring.board.parts import Panel, Query, Row, latest, quantiles, rate, share

ROLLOUT = Row(
    "Rollout",
    (
        Panel(
            title="Weights",
            unit="percentunit",
            low=0,
            high=1,
            description="The canary's share of users: as decided, as routers have it, and as gateways use it. Apart "
            "for minutes: `hone rollout rollback --break-glass`.",
            queries=(
                Query(latest("hone_rollout_intended_weight_ratio", "controller"), "decided"),
                Query(latest("hone_rollout_observed_weight_ratio", "controller"), "at the routers"),
                Query(latest("hone_canary_weight_ratio", "gateway"), "in use"),
            ),
        ),
        Panel(
            title="Evidence: log wealth",
            unit="short",
            description="Promoted when `up` reaches the decision line, rolled back when `down` reaches its own. Valid "
            "whenever one looks. Flat: too few people rate.",
            queries=(
                Query('max by (direction) (hone_rollout_wealth_log{job="controller"})', "{{direction}}"),
                Query(latest("hone_rollout_target_log", "controller"), "decision", line=True),
            ),
        ),
        Panel(
            title="Effect: canary minus stable",
            unit="percentunit",
            description="Mean and bounds that hold at all times, in the goal's unit. Low above 0: better. High below "
            "0: worse. Wide: wait, or see `hone rollout plan`.",
            queries=(
                Query('max by (bound) (hone_rollout_effect_ratio{job="controller"})', "{{bound}}"),
                Query("vector(0)", "no difference", line=True),
            ),
        ),
        Panel(
            title="Phase and stage",
            unit="short",
            description="1 for the phase of the live rollout; the stage counts from 0, -1 without one. In `created` "
            "for long: the canary does not load.",
            queries=(
                Query(latest("hone_rollout_phase", "controller", "phase"), "{{phase}}"),
                Query(latest("hone_rollout_stage", "controller"), "stage"),
                Query(f"{latest('hone_canary_unready_seconds', 'monitor')} > bool 0", "canary not loaded"),
            ),
        ),
        Panel(
            title="Users",
            unit="short",
            low=0,
            description="People assigned, closed and rated in each arm, and pairs bet on. Few rated: the goal is "
            "rarely given; think of another goal.",
            queries=(
                Query(latest("hone_rollout_users", "controller", "track", "state"), "{{track}} {{state}}"),
                Query(latest("hone_rollout_pairs", "controller"), "pairs"),
            ),
        ),
        Panel(
            title="Is the experiment sound?",
            unit="short",
            description="Log evidence that users are not split as decided, or that one arm's users vote more. Above "
            "6.9 the controller rolls back: look for a router that does not follow, or a client that "
            "hides votes.",
            queries=(
                Query(latest("hone_rollout_check_log_e", "controller", "check"), "{{check}}"),
                Query("vector(6.9)", "limit", line=True),
            ),
        ),
        Panel(
            title="Failed answers by arm",
            unit="percentunit",
            low=0,
            description="Share of answers that failed or broke off. The canary's far above stable's: the guardrail "
            "takes it out of traffic; read the runtime's log.",
            queries=(
                Query(
                    share("hone_chat_answers_total", "gateway", "track", where='outcome=~"failed|partial"'),
                    "{{track}}",
                ),
                Query(rate("hone_chat_fallbacks_total", "gateway"), "canary failures that stable answered (1/s)"),
            ),
        ),
        Panel(
            title="Latency by arm",
            unit="s",
            low=0,
            description="95 of 100 answers are faster. The canary much slower: larger model or cold runtime; the "
            "guardrail compares the two. The response hook's mean is a part of both.",
            queries=(
                Query(quantiles("hone_chat_seconds", "gateway", "track", share=0.95), "{{track}}"),
                Query(
                    'sum(rate(hone_response_hook_seconds_sum{job="gateway"}[$__rate_interval])) / '
                    '(sum(rate(hone_response_hook_seconds_count{job="gateway"}[$__rate_interval])) > 0) or vector(0)',
                    "response hook, mean",
                ),
            ),
        ),
        Panel(
            title="Transitions",
            unit="short",
            low=0,
            description="Changes of phase or stage in an hour, with their reasons; `hone rollout status` has them all.",
            queries=(
                Query(
                    'sum by (to_phase, reason) (hone_rollout_transitions_total{job="controller"})',
                    "{{to_phase}}: {{reason}}",
                ),
            ),
        ),
    ),
)


PEOPLE = Row(
    "What people say, and drift",
    (
        Panel(
            title="Thumbs up by arm",
            unit="percentunit",
            low=0,
            high=1,
            description="Share of thumbs that are up, over an hour. For what to do about a canary trust the evidence "
            "above, which counts people, not votes.",
            queries=(Query("hone:thumbs_up:ratio_rate1h", "{{track}}"),),
        ),
        Panel(
            title="Thumbs up by model",
            unit="percentunit",
            low=0,
            high=1,
            description="The same by version: is the new stable model better liked than the old one was? If not for "
            "days: `hone rollout start` with its parent, which `hone models show` names.",
            queries=(
                Query(
                    share("hone_thumbs_total", "monitor", "model_version", where='value="up"'),
                    "{{model_version}}",
                ),
            ),
        ),
        Panel(
            title="Rewards by arm",
            unit="short",
            description="Quantiles of the newest answers' rewards. Needs `--score-model`, a model in the runtime. "
            "Rising rewards with falling thumbs: the reward model is being gamed.",
            queries=(Query(latest("hone_reward_score", "monitor", "track", "quantile"), "{{track}} {{quantile}}"),),
        ),
        Panel(
            title="Capture: log evidence",
            unit="short",
            description="Evidence that less of a kind comes in than the same hours of past weeks brought. Above the "
            "line: a button, a proxy or a client is broken; hold the training with `hone freeze`.",
            queries=(
                Query(latest("hone_capture_log_e", "monitor", "kind"), "{{kind}}"),
                Query(latest("hone_capture_threshold_log", "monitor"), "alarm", line=True),
            ),
        ),
        Panel(
            title="Capture: seen and usual",
            unit="short",
            low=0,
            description="Feedback of the last 24 hours beside what their answers usually bring. It says how much is "
            "missing, and since when.",
            queries=(Query(latest("hone_capture_events", "monitor", "kind", "of"), "{{kind}}: {{of}}"),),
        ),
        Panel(
            title="Drift: log evidence",
            unit="short",
            description="Evidence that a stream is no longer as it was when this model became stable. Above the "
            "line: see the means, then the newest feedback.",
            queries=(
                Query(latest("hone_drift_log_e", "monitor", "stream"), "{{stream}}"),
                Query(latest("hone_drift_threshold_log", "monitor"), "alarm", line=True),
            ),
        ),
        Panel(
            title="Drift: means",
            unit="percentunit",
            low=0,
            high=1,
            description="Mean of the last 500 events beside the baseline's; thumbs as the share that is up, rewards "
            "as ranks. It says how large an alarm's effect is.",
            queries=(Query(latest("hone_drift_mean_ratio", "monitor", "stream", "of"), "{{stream}}: {{of}}"),),
        ),
        Panel(
            title="Baselines",
            unit="percentunit",
            low=0,
            high=1,
            description="How much of its baseline each stream has; nothing is watched before 100 %. Slow: lower "
            "`--baseline`.",
            queries=(
                Query(latest("hone_drift_baseline_ratio", "monitor", "stream"), "{{stream}}"),
                Query(latest("hone_capture_baseline_ratio", "monitor", "kind"), "capture of {{kind}}"),
            ),
        ),
    ),
)
