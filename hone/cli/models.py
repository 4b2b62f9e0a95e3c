"""Commands of training and models: models, retrain, requests, runs, lineage."""

from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import click
from sqlalchemy.orm import Session

from hone.cli.context import (
    Verbs,
    actor_option,
    current_settings,
    json_option,
    limit_option,
    read_uuid,
    reason_option,
    transaction,
    utc_now,
)
from hone.cli.output import facts, short, show_json, table
from hone.cli.train import check_spec, sweep, train
from hone.errors import Conflict
from hone.ids import uuid7
from hone.overrides import read_overrides
from hone.settings import Trigger
from hone.store.audit import append_audit
from hone.store.datasets import get_dataset
from hone.store.evaluations import list_evaluations
from hone.store.lineage import lineage_of
from hone.store.listing import list_models, list_runs
from hone.store.models import STABLE, get_alias, get_model, import_model, may_reach_traffic, override_gates, set_alias
from hone.store.requests import MANUAL, finish_request, list_requests, open_request
from hone.store.runs import get_run
from hone.store.switches import FREEZE, is_on
from hone.store.tables import Base
from hone.tokens import PREFIX, peek

METHODS = get_args(Trigger.model_fields["method"].annotation)


@click.group(cls=Verbs)
def models() -> None:
    """Model versions: list, show, add, override."""


@models.command(name="list")
@limit_option
@json_option
def models_list(limit: int, as_json: bool) -> None:
    """List the newest model versions; the one that serves is marked."""
    with transaction(current_settings()) as session:
        table(list_models(session, limit), as_json, "no model is registered: `hone models add DIR --stable`")


@models.command(name="show")
@click.argument("version")
@json_option
def models_show(version: str, as_json: bool) -> None:
    """Show where a version comes from, and what the gates said of it."""
    with transaction(current_settings()) as session:
        model, gates = columns_of(get_model(session, version)), list_evaluations(session, version)
    rows = [{"gate": gate.gate, "verdict": gate.verdict.value, "reason": gate.reason} for gate in gates]
    if as_json:
        measured = {gate.gate: gate.measurements for gate in gates}
        return show_json(
            model | {"gates": [{**row, "measurements": measured[row["gate"]]} for row in rows]},
        )
    facts(model)
    click.echo()
    table(rows, False, "no gate has judged it")


@models.command(name="add")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--stable", is_flag=True, help="Let it serve all traffic from now on.")
@click.option("--reason", default="", help="Why; needed where another model is stable. Kept in the audit log.")
@actor_option
@json_option
def models_add(directory: Path, stable: bool, reason: str, actor: str, as_json: bool) -> None:
    """Register a model directory (safetensors) that was not trained here; its name is made of its weights."""
    with transaction(current_settings()) as session:
        version = import_model(session, directory)
        if stable:
            move_stable(session, version, actor, reason)
        found = {"model_version": version, "directory": str(directory.absolute()), "stable": stable}
    facts(found, as_json)


def move_stable(session: Session, version: str, actor: str, reason: str) -> None:
    """Point `stable` to a version that may reach traffic, and write it to the audit log; once is enough.

    Raises:
        Conflict: its gates hold it back, or another model is stable and no reason is given.
    """
    model, alias = get_model(session, version), get_alias(session, STABLE)
    if not may_reach_traffic(model):
        raise Conflict(f"model {version} is {model.status}: it must pass its gates or be overridden before it serves")
    if alias is not None and alias.model_version == version:
        return
    if alias is not None and not reason.strip():
        raise Conflict(f"{alias.model_version} is stable now: say with --reason why {version} takes its place")
    set_alias(session, STABLE, version, expected_generation=alias.generation if alias else None)
    detail = {"from": alias.model_version if alias else None, "to": version}
    append_audit(session, actor, "alias.move", f"alias:{STABLE}", reason or "the first model", detail, utc_now())


@models.command(name="override")
@click.argument("version")
@reason_option
@actor_option
def models_override(version: str, reason: str, actor: str) -> None:
    """Let a version that its gates held back reach traffic; audited, and a rollout still guards it."""
    with transaction(current_settings()) as session:
        override_gates(session, version, actor, reason, utc_now())
    click.echo(f"{version} may reach traffic now: `hone rollout start {version} --reason …`")


@click.command()
@click.option("--dataset", help="Frozen or imported dataset to train on; default: freeze the newest feedback.")
@click.option("--method", type=click.Choice(METHODS), help="Default: [trigger] method.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Key of the training spec: lora.rank=8.")
@reason_option
@actor_option
@json_option
def retrain(
    dataset: str | None, method: str | None, changes: tuple[str, ...], reason: str, actor: str, as_json: bool
) -> None:
    """Ask for a retraining now; the DAG claims it.

    It needs no threshold and works in observe mode too, but not while the platform is frozen.
    """
    settings, spec = current_settings(), read_overrides(changes)
    method = method or settings.trigger.method
    check_spec(method, changes)
    with transaction(settings) as session:
        if dataset is not None:
            get_dataset(session, dataset)
        crossing = f"{MANUAL}{uuid7()}"
        request, _ = open_request(
            session, crossing=crossing, reason=reason, method=method, dataset_id=dataset, spec=spec
        )
        detail = {"method": method, "dataset_id": dataset, "spec": spec}
        append_audit(session, actor, "retrain.request", f"request:{request.request_id}", reason, detail, utc_now())
        found = {"request_id": request.request_id, "status": request.status, **detail}
        frozen = is_on(session, FREEZE)
    facts(found, as_json)
    if frozen:
        click.echo("the platform is frozen: it starts after `hone unfreeze`", err=True)


@click.group(cls=Verbs)
def requests() -> None:
    """Requests to retrain: list, cancel."""


@requests.command(name="list")
@click.option("--status", type=click.Choice(["open", "claimed", "done", "failed", "cancelled"]))
@limit_option
@json_option
def requests_list(status: str | None, limit: int, as_json: bool) -> None:
    """List the newest requests, with what became of them."""
    names = ("request_id", "status", "method", "created_at", "reason", "detail")
    with transaction(current_settings()) as session:
        rows = [
            {name: getattr(row, name) for name in names} for row in list_requests(session, status=status, limit=limit)
        ]
    if as_json:
        return show_json(rows)
    shown = [{**row, "reason": short(row["reason"], 40), "detail": short(row["detail"])} for row in rows]
    table(shown, False, "nobody has asked for a retraining yet")
    if any(text.endswith("…") for row in shown for text in (row["reason"], row["detail"])):
        click.echo("\n… is cut: --json shows all of it")


@requests.command(name="cancel")
@click.argument("request_id")
@reason_option
@actor_option
def requests_cancel(request_id: str, reason: str, actor: str) -> None:
    """Cancel a request; a run that works on it goes on, but its model gets no rollout from it."""
    found, now = read_uuid(request_id, "request"), utc_now()
    with transaction(current_settings()) as session:
        finish_request(session, found, "cancelled", reason, now)
        append_audit(session, actor, "retrain.cancel", f"request:{found}", reason, {}, now)
    click.echo(f"request {found} is cancelled; its pairs count as used")


@click.group(cls=Verbs)
def runs() -> None:
    """Training runs: list, show."""


@runs.command(name="list")
@limit_option
@json_option
def runs_list(limit: int, as_json: bool) -> None:
    """List the newest runs, and the models that they made."""
    with transaction(current_settings()) as session:
        table(list_runs(session, limit), as_json, "no run yet: `hone status` says how far it is")


@runs.command(name="show")
@click.argument("run_id")
@json_option
def runs_show(run_id: str, as_json: bool) -> None:
    """Show a run's dataset, spec, metrics and directory, where its log is."""
    with transaction(current_settings()) as session:
        facts(columns_of(get_run(session, run_id)), as_json)


@click.command()
@click.argument("response_id")
@json_option
def lineage(response_id: str, as_json: bool) -> None:
    """Follow an answer back to the events that shaped its model.

    RESPONSE_ID is the answer's id as a client saw it (chatcmpl-…), or its uuid. No text of any person is shown.
    """
    with transaction(current_settings()) as session:
        found = lineage_of(session, read_answer_id(response_id))
    if found is None:
        raise Conflict(f"answer {response_id} is not stored (yet): check the id, or try again in seconds")
    if as_json:
        return show_json(found)
    facts(found["response"])
    for model in [found["model"], *found["ancestors"]]:
        if model is not None:
            click.echo()
            facts(model_facts(model))


def read_answer_id(text: str) -> UUID:
    """Return the uuid of an answer from its token or its uuid."""
    return peek(text).response_id if text.startswith(PREFIX) else read_uuid(text, "answer")


def model_facts(model: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know of a version and how it was made."""
    run, dataset = model.get("run"), model.get("dataset")
    names = ("model_version", "status", "parent", "contains_erased", "run_id", "dataset_id")
    found = {name: model[name] for name in names if name in model}
    if run:
        found["run"] = f"{run['run_id']} ({run['method']}, {run['status']})"
    if dataset:
        found["dataset"] = f"{dataset['dataset_id'][:16]} ({dataset['source']}, {dataset['num_train']} rows)"
        found["events"] = f"{dataset['num_events']} (all of them with --json)"
    if model.get("gates"):
        found["gates"] = ", ".join(f"{gate['gate']} {gate['verdict']}" for gate in model["gates"])
    return found


def columns_of(row: Base) -> dict[str, Any]:
    """Return every column of a row."""
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


commands = (models, train, sweep, retrain, requests, runs, lineage)
