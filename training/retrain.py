"""The five steps of a retraining, each safe to repeat: claim, freeze, train, judge, start the rollout.

Ids go in and out; what a step has done already it finds in Postgres and does not do again. No torch here: training is a
subprocess of `settings.training_python`.
"""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from hone import gates
from hone.errors import Conflict, NotEnoughData, ProgramFailed
from hone.plan.facts import Labels
from hone.plan.tables import load_tables
from hone.records import Verdict
from hone.settings import Settings, read_toml
from hone.store.datasets import freeze_feedback
from hone.store.engine import make_engine, make_sessions
from hone.store.evaluations import add_evaluations, list_evaluations
from hone.store.label_counts import count_labels
from hone.store.models import get_model, may_reach_traffic, register_model, set_verdict
from hone.store.requests import claim_request, finish_request
from hone.store.rollouts import create_rollout
from hone.store.runs import fail_run, finish_run, get_run, start_run
from hone.store.tables import RetrainRequestRow, RolloutRow, TrainingRunRow
from training.choose import AUTO, IMITATED, choose
from training.jobs import find_base, freeze_policy, make_job, spec_of
from training.spec import KINDS, Job, Method, load_job, merged
from training.stages import STAGES, keys_of_stage, stages_of

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
STATUSES = {Verdict.PASS: "passed", Verdict.FAIL: "rejected", Verdict.INCONCLUSIVE: "inconclusive"}
"""Of a version by what its gates say together."""
LOG = "train.log"
LOG_TAIL_CHARACTERS = 1500
"""How much of a failed run's log its error message shows."""
CHILD_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}


def claim(settings: Settings, dag_run_id: str, now: datetime | None = None) -> str | None:
    """Claim the oldest open request for this DAG run and return its id, or None: nothing is to be done."""
    with transaction(settings) as session:
        request = claim_request(session, dag_run_id, now or utc_now(), mode=settings.mode)
        return str(request.request_id) if request else None


def freeze(settings: Settings, request_id: str) -> str:
    """Freeze the request's dataset, unless it has one, and return its id.

    Raises:
        NotEnoughData: no pair is left to train on.
    """
    with transaction(settings) as session:
        request = get_request(session, request_id)
        if request.dataset_id is None:
            is_chosen = settle_method(session, request)
            try:
                freeze_earlier(session, settings, request)
            except NotEnoughData as error:
                if not is_chosen:
                    raise
                logger.info("request %s: pairs alone, imitated and preferred in one run, since %s", request_id, error)
                request.method, request.spec = "dpo", merged(IMITATED, request.spec)
            request.dataset_id = freeze_for(session, settings, request, stages_of(request)[-1])
        return request.dataset_id


def freeze_earlier(session: Session, settings: Settings, request: RetrainRequestRow) -> None:
    """Freeze the datasets of all stages but the last, and keep their ids in the request. Raises NotEnoughData."""
    for method in stages_of(request)[:-1]:
        frozen = {"dataset": freeze_for(session, settings, request, method)}
        request.spec = merged(request.spec, {STAGES: {method: frozen}})


def freeze_for(session: Session, settings: Settings, request: RetrainRequestRow, method: Method) -> str:
    """Return the dataset of the feedback that a method reads first, up to the request's watermark."""
    named = request.spec.get("base")
    return freeze_feedback(
        session,
        kind=KINDS[method][0],
        watermark=request.watermark,
        policy=freeze_policy(settings),
        base=find_base(session, named)[0] if named else None,
    )


def train(settings: Settings, request_id: str, run: "Runner | None" = None) -> str:
    """Train and evaluate the request's challenger, in a subprocess unless `run` does it, and return the run's id.

    Of several stages each is a run; the model of an earlier one is registered, whatever its gates say, and the next
    starts from it. A run that is done is not done again; an interrupted one goes on from its newest whole checkpoint.

    Raises:
        ProgramFailed: the subprocess failed or took too long; the message names its log.
        NotEnoughData: there is no dataset yet, or no stable model to start from.
        ConfigError: the spec or the request's overrides are wrong.
    """
    with transaction(settings) as session:
        *earlier, last = stages_of(get_request(session, request_id))
    base = None
    for method in earlier:
        base = judge(settings, train_stage(settings, request_id, method, base, run or run_subprocess))
    return train_stage(settings, request_id, last, base, run or run_subprocess)


def train_stage(settings: Settings, request_id: str, method: Method, base: str | None, run: "Runner") -> str:
    """Train and evaluate one stage from the version `base` (None: the request's own); raises like `train`."""
    with transaction(settings) as session:
        job, is_done = prepare(session, settings, get_request(session, request_id), method, base)
    if is_done:
        return job.run_id
    try:
        run(settings, job)
        metrics = read_report(job.directory)["training"]
    except ProgramFailed as error:
        with transaction(settings) as session:
            fail_run(session, job.run_id, str(error), utc_now())
        raise
    with transaction(settings) as session:
        finish_run(session, job.run_id, metrics, utc_now())
    return job.run_id


def judge(settings: Settings, run_id: str) -> str:
    """Register the run's challenger with what its gates say and return its version: passed, rejected, or inconclusive.

    Raises:
        ProgramFailed: the run left no report.
    """
    with transaction(settings) as session:
        run = get_run(session, run_id)
        directory = Path(run.directory)
        report = read_report(directory)
        results = gates.judge(report["measured"], load_job(directory / "job.json").spec.thresholds)
        model_version = register_model(
            session,
            digest=report["digest"],
            directory=directory / "model",
            parent=run.base_version,
            run_id=run_id,
            dataset_id=run.dataset_id,
        )
        add_evaluations(session, model_version, run_id, results)
        verdict = gates.overall(results)
        set_verdict(session, model_version, STATUSES[verdict])
    logger.info("challenger %s of run %s: %s", model_version, run_id, verdict)
    return model_version


def start_rollout(
    settings: Settings, run_id: str, dag_run_id: str | None = None, now: datetime | None = None
) -> str | None:
    """Start the rollout of the run's challenger if it may reach traffic, end the request, and return the rollout's id.

    The request is the one that `dag_run_id` claimed, since two requests may want the same run; else that which made it.
    None: the gates, the mode, or the state of live traffic forbid it; the request's detail says which.
    """
    now = now or utc_now()
    with transaction(settings) as session:
        run = get_run(session, run_id)
        model_version = version_of_run(run)
        rollout_id = rollout_of(session, model_version)
        detail = f"rollout {rollout_id} of {model_version}"
        if rollout_id is None:
            obstacle = what_forbids(session, settings, model_version)
            if obstacle is None:
                rollout_id, obstacle = try_rollout(session, settings, run, model_version, now)
            detail = f"rollout {rollout_id} of {model_version}" if obstacle is None else f"no rollout: {obstacle}"
        logger.info("run %s: %s", run_id, detail)
        claimed = list(session.scalars(claimed_by(dag_run_id))) if dag_run_id else [run.request_id]
        for request_id in claimed:
            if request_id:
                finish_request(session, request_id, "done", detail, now)
        return str(rollout_id) if rollout_id else None


def fail(settings: Settings, dag_run_id: str, detail: str, now: datetime | None = None) -> None:
    """Mark the request that this DAG run has claimed as failed; one that has ended stays as it is."""
    with transaction(settings) as session:
        for request_id in session.scalars(claimed_by(dag_run_id)):
            finish_request(session, request_id, "failed", detail, now or utc_now())


def claimed_by(dag_run_id: str) -> Select[UUID]:
    """Return the query for the requests that a DAG run holds."""
    return select(RetrainRequestRow.request_id).where(
        RetrainRequestRow.dag_run_id == dag_run_id, RetrainRequestRow.status == "claimed"
    )


def prepare(
    session: Session,
    settings: Settings,
    request: RetrainRequestRow,
    method: Method | None = None,
    base: str | None = None,
) -> tuple[Job, bool]:
    """Write everything that a stage's subprocess needs; return the job, and whether it is done already.

    Args:
        method: of the stage; None: the last one.
        base: the version that the stage before made.
    """
    if request.dataset_id is None:
        raise NotEnoughData(f"request {request.request_id} has no dataset yet: freeze first")
    method = method or stages_of(request)[-1]
    keys = keys_of_stage(request, method)
    spec = spec_of(settings, method, keys | ({"base": base} if base else base_of(request, keys)))
    assert spec.dataset is not None
    job = make_job(session, settings, spec)
    row = start_run(
        session,
        run_id=job.run_id,
        request_id=request.request_id,
        dataset_id=spec.dataset,
        method=spec.method,
        base_version=job.base_version,
        spec=spec.model_dump(mode="json"),
        directory=job.directory,
        now=utc_now(),
    )
    return job, row.status == "done" and (job.directory / "evaluation.json").exists()


def base_of(request: RetrainRequestRow, keys: Mapping[str, Any]) -> dict[str, str]:
    """Return the base of the first stage: its own key, else the request's."""
    named = keys.get("base") or request.spec.get("base")
    return {"base": named} if named else {}


def settle_method(session: Session, request: RetrainRequestRow) -> bool:
    """Let the labels choose the method of a request that leaves it to them, and say so; the request's own keys win."""
    if request.method != AUTO:
        return False
    method, overrides, why = choose(Labels(**count_labels(session)), load_tables())
    logger.info("request %s: %s, since %s", request.request_id, method, why)
    request.method, request.spec = method, merged(overrides, request.spec)
    return True


Runner = Callable[[Settings, Job], None]
"""Does a job; raises ProgramFailed where it went wrong."""


def run_subprocess(settings: Settings, job: Job) -> None:
    """Run `python -m training run` and wait. Raises ProgramFailed with the place and the end of its log."""
    log_path = job.directory / LOG
    command = [str(settings.training_python), "-m", "training", "run", str(job.directory / "job.json")]
    environment = {**CHILD_ENVIRONMENT, "OMP_NUM_THREADS": str(job.spec.threads)}
    with log_path.open("ab") as log:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=settings.training.timeout_s,
            ).returncode
        except subprocess.TimeoutExpired:
            raise ProgramFailed(
                f"run {job.run_id} took longer than training.timeout_s = {settings.training.timeout_s} and was "
                f"stopped; run it again to go on from its checkpoint, or raise the limit; log: {log_path}"
            ) from None
        except OSError as error:
            raise ProgramFailed(f"{command[0]} cannot be run ({error}): correct HONE_TRAINING_PYTHON") from error
    if code:
        tail = log_path.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise ProgramFailed(f"run {job.run_id} ended with code {code}; log: {log_path}\n{tail}")


def read_report(directory: Path) -> dict[str, Any]:
    """Return what a run measured. Raises ProgramFailed when it left nothing."""
    path = directory / "evaluation.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProgramFailed(f"{path} cannot be read ({error}): run the training task again") from None
    return report


def version_of_run(run: TrainingRunRow) -> str:
    """Return the version that the run made."""
    version: str = read_report(Path(run.directory))["model_version"]
    return version


def what_forbids(session: Session, settings: Settings, model_version: str) -> str | None:
    """Return why the version gets no traffic, or None."""
    model = get_model(session, model_version)
    if not may_reach_traffic(model):
        said = [f"{r.gate} {r.verdict}: {r.reason}" for r in list_evaluations(session, model_version)]
        worst = "; ".join(text for text in said if f" {Verdict.PASS}: " not in text)
        return f"{model_version} is {model.status} ({worst})"
    if settings.mode != "active":
        return f"mode is {settings.mode}: set HONE_MODE=active to let passed models reach traffic"
    return None


def try_rollout(
    session: Session, settings: Settings, run: TrainingRunRow, model_version: str, now: datetime
) -> tuple[UUID | None, str | None]:
    """Return the new rollout's id, or why live traffic does not allow one now."""
    try:
        with session.begin_nested():
            rollout_id = create_rollout(
                session,
                canary_version=model_version,
                stable_version=load_job(Path(run.directory) / "job.json").served_version or run.base_version,
                policy=read_toml(settings.rollout.policy),
                started_by=f"retrain:{run.run_id}",
                now=now,
            )
    except Conflict as error:
        return None, str(error)
    return rollout_id, None


def rollout_of(session: Session, model_version: str) -> UUID | None:
    """Return the version's latest rollout, so that a repeated step starts no second one."""
    statement = select(RolloutRow.rollout_id).where(RolloutRow.canary_version == model_version)
    return session.scalar(statement.order_by(RolloutRow.created_at.desc()).limit(1))


def get_request(session: Session, request_id: str) -> RetrainRequestRow:
    """Return the request's row, locked until the transaction ends. Raises Conflict when there is none."""
    row = session.get(RetrainRequestRow, UUID(request_id), with_for_update=True)
    if row is None:
        raise Conflict(f"there is no retrain request {request_id}")
    return row


@contextmanager
def transaction(settings: Settings) -> Iterator[Session]:
    """Open a session whose work is committed at the end of the block."""
    engine = make_engine(settings.database_url, pool_size=1, program="hone-training")
    try:
        with make_sessions(engine).begin() as session:
            yield session
    finally:
        engine.dispose()


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)
