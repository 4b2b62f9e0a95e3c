"""`python -m examples.cluster`: a cluster on this machine whose API is ours and whose Seldon arms are real."""

from pathlib import Path

import click
import uvicorn

from examples.cluster.api import Cluster
from examples.cluster.app import cluster_app
from examples.cluster.live import Microservices, MlServer
from hone.local.processes import Supervisor


@click.command()
@click.option("--line", type=click.Choice(["v1", "v2"]), required=True)
@click.option("--port", type=int, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Logs and state.")
def main(line: str, port: int, data: Path) -> None:
    """Serve the API and run the arms until SIGTERM; then all of them are stopped."""
    with Supervisor(data / f"cluster-{line}.json") as supervisor:
        if line == "v1":
            cluster = Cluster(arms=lambda clock: Microservices(supervisor, data / "logs"))
        else:
            cluster = Cluster(arms=lambda clock: MlServer(supervisor, data / "logs", data / "mlserver"))
        uvicorn.run(cluster_app(cluster), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
