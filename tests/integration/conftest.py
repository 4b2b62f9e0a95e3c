"""The controller's small platform, shared by the tests of rollouts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hone.store.engine import make_engine, make_sessions, migrate
from hone.store.tables import ModelAliasRow, ModelVersionRow
from serving.controller import Controller
from tests.support.platform import Clock, make_router, router_app
from tests.support.rollout_world import World
from tests.support.rollouts import START
from tests.support.web import serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.support.tiny_model import make_tiny_model

    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(root / name, seed=seed) for seed, name in enumerate(("old", "new"))}


@pytest.fixture
def runtime() -> Iterator[str]:
    from serving.runtime.app import runtime_app

    with serving(runtime_app({})) as url:
        yield url


@pytest.fixture
def world(database_url: str, models: dict[str, Path], runtime: str, tmp_path: Path) -> Iterator[World]:
    migrate(database_url)
    engine = make_engine(database_url)
    sessions = make_sessions(engine)
    with sessions.begin() as session:
        for version, directory in models.items():
            session.add(
                ModelVersionRow(model_version=version, digest=version, directory=str(directory), status="passed")
            )
        session.flush()
        session.add(ModelAliasRow(alias="stable", model_version="old", generation=1))
    clock = Clock(START)
    routers = [make_router(tmp_path / name) for name in "ab"]
    with serving(router_app(routers[0], clock)) as first, serving(router_app(routers[1], clock)) as second:
        yield World(sessions, [first, second], routers, runtime, clock)
    engine.dispose()


@pytest.fixture
def controller(world: World) -> Iterator[Controller]:
    with world.backend() as backend:
        yield world.controller(backend)
