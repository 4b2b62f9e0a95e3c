"""People who chat and vote until a rollout has ended, on a whole platform: gateway, broker, ingest, controller."""

import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy.orm import Session, sessionmaker

from hone.health import Pulse
from hone.settings import Settings
from hone.store.models import get_alias, register_model, set_alias
from hone.store.rollouts import create_rollout, get_rollout
from hone.store.tables import ResponseRow, RolloutRow
from hone.weights import weights_digest
from serving.controller import Controller
from serving.gateway.app import open_gateway
from serving.looking import keep_looking
from serving.traffic.choice import open_backend
from tests.support.gateway import IDENTITY_KEY, KEY, TOKEN_KEYS, broker
from tests.support.ingest_process import Program, wait_for
from tests.support.web import serving

ANSWERS = {"base": "Open the Orders page.", "good": "Happy to help! Press Rename.", "bad": "Export."}
LIKES = {ANSWERS["base"]: 0.5, ANSWERS["good"]: 0.95, ANSWERS["bad"]: 0.05}
QUESTION = [{"role": "user", "content": "How do I rename my order?"}]
POLICY: dict[str, Any] = {
    "alpha": 0.05,
    "min_canary_users": 20,
    "promote_weight": 0.25,
    "horizon_pairs": 400,
    "horizon_s": 60,
    "outcome_window_s": 1,
    "settle_s": 1,
    "block_s": 4,
    "stages": [{"weight": 0.25, "min_users": 5}, {"weight": 0.5, "min_users": 10}],
    "guardrails": {"max_latency_ratio": 20.0, "latency_slack_ms": 5000},
    "max_propensity_gap": 0.2,
}


@dataclass
class Crowd:
    """The running platform, and the people on it."""

    sessions: sessionmaker[Session]
    client: httpx.Client
    versions: dict[str, str]
    "By what the model says."
    texts: dict[str, str] = field(default_factory=dict)
    "Text of each answer, by its id."
    users: int = 0

    def visit(self, number: int) -> None:
        """A new person asks, half of them for a stream, reads the text, and votes."""
        body = {"model": "hone", "messages": QUESTION, "temperature": 0, "stream": number % 2 == 1}
        headers = {"Authorization": f"Bearer {KEY}", "X-User-Id": f"user {number}"}
        answer = self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        answer_id, text = read(answer)
        self.texts[answer_id] = text
        vote = 1 if random.Random(number).random() < LIKES[text] else -1
        told = self.client.post("/v1/feedback", json={"kind": "thumbs", "response_id": answer_id, "value": vote})
        assert told.status_code == 202, told.text

    def crowd(self, rollout_id: UUID) -> RolloutRow:
        """Let ever new people come until the rollout has ended."""
        deadline = time.monotonic() + 60
        with ThreadPoolExecutor(6) as pool:
            while (row := self.row(rollout_id)).ended_at is None:
                assert time.monotonic() < deadline, f"not ended: {row.phase} {row.reason} {row.evidence}"
                list(pool.map(self.visit, range(self.users, self.users + 12)))
                self.users += 12
        return row

    def row(self, rollout_id: UUID) -> RolloutRow:
        with self.sessions() as session:
            return get_rollout(session, rollout_id)

    def start(self, canary: str, stable: str) -> UUID:
        with self.sessions.begin() as session:
            return create_rollout(
                session,
                canary_version=self.versions[canary],
                stable_version=self.versions[stable],
                policy=POLICY,
                started_by="test",
                now=datetime.now(UTC),
            )

    def stable(self) -> str:
        with self.sessions() as session:
            alias = get_alias(session, "stable")
            assert alias is not None
            return alias.model_version

    def stored(self) -> list[ResponseRow]:
        with self.sessions() as session:
            return list(session.query(ResponseRow))

    def check_answers(self) -> None:
        """Every stored answer was spoken by the weights of the version that it is credited to."""
        said = {version: ANSWERS[name] for name, version in self.versions.items()}
        wait_for(lambda: len(self.stored()) >= len(self.texts), 20)
        rows = self.stored()
        assert {row.completion for row in rows} == set(ANSWERS.values()), "all three were served"
        assert all(row.completion == said[row.model_version] for row in rows)
        assert not any(row.fallback for row in rows)


def read(answer: httpx.Response) -> tuple[str, str]:
    """Id and text of an answer, whole or streamed."""
    if "event-stream" not in answer.headers["content-type"]:
        return answer.json()["id"], answer.json()["choices"][0]["message"]["content"]
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [
        httpx.Response(200, text=line[6:]).json() for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    assert len({event["id"] for event in events}) == 1
    return events[0]["id"], "".join(
        event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]
    )


def register(sessions: sessionmaker[Session], models: Mapping[str, Path]) -> dict[str, str]:
    """Make the models known, `base` as the stable one; return their versions."""
    with sessions.begin() as session:
        versions = {
            name: register_model(session, digest=weights_digest(directory), directory=directory, status="passed")
            for name, directory in models.items()
        }
        set_alias(session, "stable", versions["base"], expected_generation=None)
    return versions


@contextmanager
def platform(
    directory: Path, store_url: str, sessions: sessionmaker[Session], values: Mapping[str, Any]
) -> Iterator[httpx.Client]:
    """A client of a gateway whose traffic is stored and looked at; `values` are settings, such as of the backend."""
    with ExitStack() as stack:
        bootstrap = stack.enter_context(broker())
        common: dict[str, Any] = {
            "mode": "active",
            "database_url": store_url,
            "kafka_bootstrap_servers": bootstrap,
            "var_dir": directory,
            "token_keys": TOKEN_KEYS,
            "identity_key": IDENTITY_KEY,
            "admin_key": KEY,
            "rollout": {"interval_s": 0.3, "plan_ttl_s": 30},
            **values,
        }
        gateway = stack.enter_context(serving(open_gateway(Settings(**common), "127.0.0.1")))
        ingest = Program(
            "events",
            {
                "HONE_DATABASE_URL": store_url,
                "HONE_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
                "HONE_KAFKA_INCARNATION": "live",
                "HONE_IDENTITY_KEY": IDENTITY_KEY,
            },
        )
        stack.callback(ingest.end)
        settings = Settings(**(common | {"gateway_url": gateway}))
        stop = threading.Event()
        backend = stack.enter_context(open_backend(settings))
        controller = Controller(sessions, backend, settings)
        thread = threading.Thread(target=keep_looking, args=(controller, stop, Pulse(max_age_s=60)))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        client = stack.enter_context(httpx.Client(base_url=gateway, timeout=30, trust_env=False))
        wait_for(lambda: client.get("/readyz").status_code == 200, 60)
        yield client
