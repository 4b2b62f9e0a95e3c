"""Retrain: claim a request, freeze its dataset, train and evaluate a challenger, judge it, start its rollout.

**Reads** `retrain_request`, preference pairs, the stable model. **Writes** a dataset, a training run, evaluations, a
model version and a rollout. **Impact of failure**: the request is marked failed and nothing reaches traffic; the next
crossing of the threshold, or `hone retrain`, makes a new one. Every task may be cleared and run again.

The schedule only says "look": a message on `hone.retrain.v1` or the clock. The first task re-reads Postgres and claims,
or skips the rest, so that a lost, late or doubled message changes nothing.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.apache.kafka.triggers.shared_stream import KafkaSharedStreamTrigger
from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable, dag, task

RETRAIN_TOPIC = "hone.retrain.v1"

looks = Asset(
    "hone-retrain-looks",
    watchers=[AssetWatcher(name="looks", trigger=KafkaSharedStreamTrigger(topics=[RETRAIN_TOPIC]))],
)


def mark_failed(context: dict[str, Any]) -> None:
    """Mark the request of a failed run, so that `hone status` and the metrics show it."""
    from hone.settings import load_settings
    from training.retrain import fail

    fail(
        load_settings(),
        dag_run_id=context["dag_run"].run_id,
        detail=str(context.get("exception") or "see the task's log"),
    )


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("*/10 * * * *", timezone="UTC"), assets=[looks]),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    dagrun_timeout=timedelta(hours=12),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=20), "on_failure_callback": mark_failed},
    tags=["hone"],
    doc_md=__doc__,
)
def retrain() -> None:
    """Five verbs, ids between them."""

    @task.short_circuit
    def claim(dag_run: Any = None) -> str | None:
        """Claim the oldest open request for this run; skip everything when there is none."""
        from hone.settings import load_settings
        from training.retrain import claim as claim_request

        return claim_request(load_settings(), dag_run_id=dag_run.run_id)

    @task
    def freeze(request_id: str) -> str:
        """Freeze the dataset of the request; return its id."""
        from hone.settings import load_settings
        from training.retrain import freeze as freeze_dataset

        freeze_dataset(load_settings(), request_id)
        return request_id

    @task(queue="gpu", pool="gpu", execution_timeout=timedelta(hours=8))
    def train(request_id: str) -> str:
        """Train and evaluate in a subprocess, stage by stage, resuming from the newest verified checkpoint."""
        from hone.settings import load_settings
        from training.retrain import train as train_run

        return train_run(load_settings(), request_id)

    @task
    def judge(training_run: str) -> str:
        """Register the challenger and its gates' verdicts; return the run's id."""
        from hone.settings import load_settings
        from training.retrain import judge as judge_run

        judge_run(load_settings(), training_run)
        return training_run

    @task
    def roll_out(training_run: str, dag_run: Any = None) -> str | None:
        """Start the rollout of a challenger that passed; return its id, or none."""
        from hone.settings import load_settings
        from training.retrain import start_rollout

        return start_rollout(load_settings(), training_run, dag_run.run_id)

    roll_out(judge(train(freeze(claim()))))


dag_object = retrain()

if __name__ == "__main__":
    # One real run without a scheduler: what the demo's poller starts.
    run = dag_object.test()
    raise SystemExit(0 if run.state == "success" else 1)
