"""Print the Seldon manifests of a split, ready for `kubectl apply -f -`: `python -m deploy.seldon.render v2 --help`."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import click

from hone.records import TrafficPlan
from serving.traffic import seldon_v1, seldon_v2
from serving.traffic.kubernetes import parts_of


def options(command: Any) -> Any:
    """Add what both lines ask for."""
    for option in reversed(
        (
            click.option("--stable", required=True, help="Version that serves."),
            click.option("--canary", help="Version on trial."),
            click.option("--weight", default=0.0, help="The canary's share, 0 to 1; with 0 it only gets copies."),
            click.option("--uri", "uris", multiple=True, required=True, help="VERSION=PLACE of its weights; repeat."),
            click.option("--name", default="hone-chat", show_default=True),
            click.option("--namespace", default="hone", show_default=True),
        )
    ):
        command = option(command)
    return command


def make_plan(stable: str, canary: str | None, weight: float) -> TrafficPlan:
    """Return the plan that the options describe; it is a person's, so it bears no fence of a controller."""
    return TrafficPlan(
        fence=0,
        stable=stable,
        canary=canary,
        canary_weight=weight,
        shadow=canary is not None and weight == 0,
        rollout_id=uuid4() if canary else None,
        stage=0 if canary else None,
        expires_at=datetime.now(UTC) + timedelta(days=365),
    )


def show(*manifests: dict[str, Any]) -> None:
    """Print one Kubernetes List; JSON is YAML."""
    click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=1))


def by_version(uris: tuple[str, ...]) -> dict[str, str]:
    """Return the addresses by version."""
    return dict(uri.split("=", 1) for uri in uris)


@click.group()
def cli() -> None:
    """Manifests of Seldon Core."""


@cli.command()
@options
def v2(stable: str, canary: str | None, weight: float, uris: tuple[str, ...], name: str, namespace: str) -> None:
    """One Model for each version and one Experiment (Seldon Core v2)."""
    check_weight(weight, seldon_v2.WHOLE)
    plan, found = make_plan(stable, canary, weight), by_version(uris)
    versions = [version for version in (stable, canary) if version]
    models = [seldon_v2.render_model(version, found[version], namespace=namespace) for version in versions]
    show(*models, seldon_v2.render_experiment(plan, name=name, namespace=namespace))


@cli.command()
@options
@click.option("--image", default="hone-seldon-v1", show_default=True, help="Image of the predictors.")
def v1(
    stable: str, canary: str | None, weight: float, uris: tuple[str, ...], name: str, namespace: str, image: str
) -> None:
    """One SeldonDeployment with a predictor for each version (Seldon Core v1)."""
    check_weight(weight, 100)
    plan, found = make_plan(stable, canary, weight), by_version(uris)
    versions = [version for version in (stable, canary) if version]
    arms = [seldon_v1.render_predictor(name, version, found[version], image, traffic=0) for version in versions]
    show(seldon_v1.render_deployment(plan, arms, name=name, namespace=namespace))


@cli.command()
@click.argument("version")
def settings(version: str) -> None:
    """The model-settings.json that MLServer wants beside the weights of VERSION (Seldon Core v2)."""
    parameters = {"extra": {"version": version}}  # without `uri` the folder is the one that the file is in
    document = {"name": "chat", "implementation": "serving.seldon.v2.ChatModel", "parameters": parameters}
    click.echo(json.dumps(document, indent=1))


def check_weight(weight: float, whole: int) -> None:
    """Refuse a weight that the platform alone, without gateways, cannot split by."""
    try:
        parts_of(weight, whole)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


if __name__ == "__main__":
    cli()
