"""Roll out: start the rollout of a registered version by hand, and watch it to its end.

**Reads** the gates of the version, the stable model, the policy. **Writes** a rollout and an audit row.
**Impact of failure**: none on traffic; a failed start changes nothing, a failed watch leaves the rollout to its
controller. A run that is red at `watch` says that the version was rolled back, with the reason in the task's log.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag, task


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=20)},
    params={
        "model_version": Param("", type="string", minLength=3, description="A version that passed its gates."),
        "reason": Param("", type="string", minLength=3, description="Why; kept in the audit log."),
    },
    render_template_as_native_obj=True,
    tags=["hone"],
    doc_md=__doc__,
)
def roll_out() -> None:
    """Start, then watch."""

    @task(retries=0)
    def start(params: dict[str, Any] | None = None) -> str:
        """Create the rollout; return its id."""
        from hone.rollout_start import begin
        from hone.settings import load_settings

        asked = params or {}
        return begin(load_settings(), asked["model_version"], actor="airflow", reason=asked["reason"])

    @task.sensor(mode="reschedule", poke_interval=30, timeout=21 * 86_400)
    def watch(rollout_id: str) -> bool:
        """Wait until the rollout has ended; fail where it was rolled back."""
        from hone.rollout_start import has_ended
        from hone.settings import load_settings

        return has_ended(load_settings(), rollout_id)

    watch(start())


roll_out()
