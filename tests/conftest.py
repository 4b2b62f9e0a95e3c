"""What tests share. A test says what it needs by a marker; where that is missing the test is skipped with the reason,
unless HONE_REQUIRE (a comma list) names it: then it fails.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, settings
from sqlalchemy.orm import Session, sessionmaker

from examples.cluster.api import Cluster
from hone.local import kafka, postgres
from hone.local.processes import Supervisor
from hone.store.engine import make_engine, make_sessions, migrate
from tests.support.kube_cluster import KubeCluster
from tests.support.kube_server import KubeServer, install, running_server
from tests.support.kube_webhook import running_webhook
from tests.support.kubernetes import EXPERIMENT, MODEL, V1, definition_of, make_cluster

ROOT = Path(__file__).parents[1]

# A slow machine is no finding: how long an example takes, or is made, decides nothing.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

KUBERNETES = ROOT / "var" / "kube"
KAFKA_LIBS = ROOT / "var" / "kafka" / "libs"
POSTGRES_VARIABLE = "TEST_POSTGRES_URL"
"""Address of a server whose user may create databases; the tests then run there and not on the embedded one."""


def _missing_programs(*programs: str) -> str | None:
    missing = [program for program in programs if not shutil.which(program)]
    return f"not on the path: {', '.join(missing)}" if missing else None


def _missing_path(path: Path) -> str | None:
    return None if path.exists() else f"{path} is missing"


NEEDS: dict[str, tuple[Callable[[], str | None], str]] = {
    "kafka": (cache(lambda: kafka.obstacle(KAFKA_LIBS)), "Debian: apt-get install openjdk-17-jre-headless maven"),
    "airflow": (cache(lambda: None if find_spec("airflow") else "apache-airflow is not installed"), "make setup"),
    "prometheus": (cache(lambda: _missing_programs("prometheus", "promtool")), "Debian: apt-get install prometheus"),
    "browser": (
        cache(lambda: _missing_programs("chromium", "chromedriver")),
        "Debian: apt-get install chromium chromium-driver",
    ),
    "node": (cache(lambda: _missing_programs("node")), "install node 20 or newer"),
    "shared": (cache(lambda: _missing_path(ROOT.parent / "shared" / "data")), "put the data pack beside the checkout"),
    "ray": (cache(lambda: _missing_path(ROOT / ".venv-ray")), "sh deploy/ray.sh"),
    "trackers": (cache(lambda: _missing_path(ROOT / ".venv-trackers")), "sh deploy/trackers.sh"),
    "vllm": (cache(lambda: _missing_path(ROOT / ".venv-vllm")), "sh deploy/vllm.sh"),
    "seldon": (
        cache(lambda: _missing_path(ROOT / ".venv-seldon") or _missing_path(ROOT / ".venv-mlserver")),
        "make seldon",
    ),
    "kubernetes": (cache(lambda: _missing_path(KUBERNETES / "version")), "sh deploy/kube-apiserver.sh"),
}
"""Marker -> why a test that carries it cannot run here, or None; and what brings it."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, (obstacle, remedy) in NEEDS.items():
        if item.get_closest_marker(name) and (reason := obstacle()):
            _skip_or_fail(name, f"{reason} ({remedy})")


def _skip_or_fail(name: str, reason: str) -> None:
    if name in os.environ.get("HONE_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"HONE_REQUIRE names {name}, but {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


@pytest.fixture(scope="session")
def require() -> Callable[[str, str], None]:
    """`require(name, reason)`: skip the running test, or fail it where HONE_REQUIRE names `name`."""
    return _skip_or_fail


@pytest.fixture(scope="session")
def kafka_libs() -> Path:
    """The directory with the broker's jars, fetched at first use."""
    kafka.fetch_jars(KAFKA_LIBS)
    return KAFKA_LIBS


@pytest.fixture(scope="session")
def kafka_server(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real broker that runs through the session."""
    directory = tmp_path_factory.mktemp("kafka")
    server = kafka.prepare_kafka(directory / "data", kafka_libs)
    with Supervisor(directory / "stack.json") as supervisor:
        supervisor.start(server.program(directory / "kafka.log"))
        yield server.bootstrap_servers


@pytest.fixture
def kafka_bootstrap(kafka_server: str) -> str:
    """Address of a real broker without topics: what an earlier test left there is deleted."""
    client = AdminClient({"bootstrap.servers": kafka_server})
    if left := topics_of(client):
        for deleted in client.delete_topics(left).values():
            deleted.result()
    deadline = time.monotonic() + 60
    while topics_of(client):
        assert time.monotonic() < deadline, "the broker does not delete its topics"
        time.sleep(0.05)
    return kafka_server


def topics_of(client: AdminClient) -> list[str]:
    return [name for name in client.list_topics(timeout=30).topics if not name.startswith("__")]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The maintenance database of a real server, not durable, that ends with the session even if that is killed."""
    if url := os.environ.get(POSTGRES_VARIABLE):
        yield url
        return
    # Not in pytest's own folder: the next pytest of the same user closes that one to the server's user.
    with tempfile.TemporaryDirectory(prefix="hone-test-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        yield from run_postgres(directory)


def run_postgres(directory: Path) -> Iterator[str]:
    with Supervisor(directory / "stack.json") as supervisor:
        server = postgres.start_postgres(
            directory / "data", settings={**postgres.SERVER_SETTINGS, "fsync": "off", "full_page_writes": "off"}
        )
        supervisor.adopt(server.running())
        yield server.url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database of its own for one test."""
    name = f"test_{uuid4().hex[:12]}"
    yield postgres.create_database(postgres_url, name)
    postgres.drop_database(postgres_url, name)


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> Iterator[str]:
    """The name of a database with the present schema, to be copied."""
    name = f"template_{uuid4().hex[:12]}"
    migrate(postgres.create_database(postgres_url, name))
    yield name
    postgres.drop_database(postgres_url, name)


@pytest.fixture
def store_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A database of its own for one test, with every table and no row."""
    name = f"test_{uuid4().hex[:12]}"
    yield postgres.create_database(postgres_url, name, template=migrated_template)
    postgres.drop_database(postgres_url, name)


@pytest.fixture
def sessions(store_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on `store_url`; `with sessions.begin() as session` is one transaction."""
    engine = make_engine(store_url, program="test")
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a chat model with random weights, made once."""
    import torch

    from tests.support.tiny_model import make_tiny_model

    torch.set_num_threads(1)
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def kube_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    """A real API server that runs through the session, with Seldon's definitions and hone's namespace and role."""
    directory = tmp_path_factory.mktemp("kube")
    with running_server(directory) as server:
        ours = [ROOT / "deploy" / path for path in ("k8s/base/namespace.yaml", "seldon/rbac.yaml")]
        objects = [one for file in ours for one in yaml.safe_load_all(file.read_text())]
        install(server, [*map(definition_of, (V1, MODEL, EXPERIMENT)), *objects])
        with running_webhook(server, directory):
            yield server


@pytest.fixture
def new_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """`new_cluster(kind, **options)`: an empty one of `CLUSTERS`; who asks it has the controller's rights."""
    made: list[KubeCluster] = []

    def make(kind: str, account: str | None = "hone-controller", **options: Any) -> Cluster:
        if kind == "stand-in":
            return make_cluster(**options)
        server: KubeServer = request.getfixturevalue("kube_server")
        token = server.token_of(account) if account else server.admin_token
        made.append(KubeCluster(server, token, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
