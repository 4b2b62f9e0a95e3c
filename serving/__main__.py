"""Programs that serve: `python -m serving gateway | runtime | vllm | controller`."""

import logging
import sys
from pathlib import Path

import click

from hone.errors import HoneError
from hone.local.ports import require_free
from hone.settings import load_settings
from serving.server import serve

QUIET = ("alembic", "httpx")
"""Libraries whose INFO is about themselves."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@click.group()
def cli() -> None:
    """Serve models, and split live traffic between them."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8700, show_default=True)
def gateway(host: str, port: int) -> None:
    """Answer chats, take feedback and split traffic; settings come from `HONE_*`."""
    from serving.gateway.app import open_gateway

    require_free([("gateway", port)], host)
    serve(open_gateway(load_settings(), host), host, port)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8710, show_default=True)
@click.option("--model", "models", multiple=True, help="VERSION=DIRECTORY; may be repeated.")
@click.option("--threads", default=1, show_default=True, help="torch threads")
def runtime(host: str, port: int, models: tuple[str, ...], threads: int) -> None:
    """Serve model directories of transformers under their versions."""
    import torch

    from serving.runtime.app import runtime_app
    from serving.runtime.model import load_model

    require_free([("runtime", port)], host)
    torch.set_num_threads(threads)
    pairs = [model.partition("=") for model in models]
    loaded = {version: load_model(version, Path(directory)) for version, _, directory in pairs}
    serve(runtime_app(loaded), host, port)


@cli.command()
@click.option("--base", required=True, help="VERSION=DIRECTORY of the whole weights.")
@click.option("--adapter", "adapters", multiple=True, help="VERSION=DIRECTORY of an adapter; may be repeated.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8710, show_default=True)
@click.option("--reconcile", "url", help="Load and unload adapters of the engine that runs at this address.")
def vllm(base: str, adapters: tuple[str, ...], host: str, port: int, url: str | None) -> None:
    """Print the command of a vLLM engine that serves all arms, or bring a running one up to date."""
    import httpx

    from serving.runtime.vllm import command, reconcile, written

    named = {version: Path(directory) for version, _, directory in (pair.partition("=") for pair in adapters)}
    version, _, directory = base.partition("=")
    if url is None:
        return click.echo(written(command((version, Path(directory)), named, host, port)))
    with httpx.Client(base_url=url, trust_env=False) as client:
        loaded, unloaded = reconcile(client, version, named)
    click.echo(f"loaded {', '.join(loaded) or 'nothing'}; unloaded {', '.join(unloaded) or 'nothing'}")


@cli.command()
def openapi() -> None:
    """Print the gateway's API as an OpenAPI 3.1 document; `docs/openapi.json` is what it printed last."""
    from serving.gateway.openapi import written

    click.echo(written(), nl=False)


@cli.command()
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")
@click.option("--metrics-port", type=int, help="Serve /metrics and /healthz there.")
def controller(metrics_host: str, metrics_port: int | None) -> None:
    """Carry rollouts out: look at the evidence, decide, send plans to the gateways."""
    from serving.looking import run

    sys.exit(run(load_settings(), metrics_port, metrics_host))


def main() -> int:
    """Run a program; an error that people can mend is one line, not a traceback."""
    try:
        cli.main(standalone_mode=False)
    except HoneError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
