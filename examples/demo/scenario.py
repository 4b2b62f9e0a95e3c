"""The demo's story, stage by stage. Each stage waits for what the platform does; none does it in its place."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from examples.demo import watch
from examples.demo.show import Show, Update
from examples.demo.watch import DemoFailed
from examples.demo.world import World, load_arm
from examples.support.bad_pairs import write_bad_pairs
from examples.support.corpus import judge_questions
from examples.support.drive import Sent, Target, ask_all, collect, keep_rating
from examples.support.judge import Comparison, compare
from examples.support.taste import GUIDED
from examples.support.users import make_users
from hone.rollout import Phase
from hone.settings import read_toml
from hone.store.imports import import_file
from hone.store.models import override_gates
from hone.store.requests import open_request
from hone.store.rollouts import create_rollout
from hone.store.tables import ModelVersionRow, RetrainRequestRow, RolloutRow

NUM_USERS = 132
QUESTIONS_EACH = 8
NUM_TURNS = NUM_USERS * QUESTIONS_EACH
SEED = 1
ANSWERS_PER_QUESTION = 2
BAD_RECIPE = {
    "learning_rate": 1e-3,
    "beta": 0.1,
    "sft_weight": 0.0,
    "steps": 60,
    "stop_rules": "record",
}
"""What destroys a model while its training metrics look excellent."""
OPERATOR = "demo operator"
ROLLOUT_TIMEOUT_S = 300


@dataclass
class Story:
    """What happened so far."""

    base_version: str
    base_directory: Path
    sent: list[Sent] = field(default_factory=list)
    good: ModelVersionRow | None = None
    good_gates: list[dict[str, Any]] = field(default_factory=list)
    good_request: RetrainRequestRow | None = None
    good_rollout: RolloutRow | None = None
    bad: ModelVersionRow | None = None
    bad_gates: list[dict[str, Any]] = field(default_factory=list)
    bad_rollout: RolloutRow | None = None
    harmful_stopped_by_gates: bool = False
    comparison: Comparison | None = None

    @property
    def num_events_sent(self) -> int:
        """Distinct events that the gateway acknowledged, over all crowds."""
        return sum(sent.events_sent for sent in self.sent)


def gather_feedback(world: World, story: Story, update: Update) -> None:
    """People chat and rate until all are done; then every event is in Postgres, and the threshold has been crossed."""
    people = make_users(NUM_USERS, GUIDED, SEED, questions_each=QUESTIONS_EACH)

    def progress(sent: Sent) -> None:
        update(f"{sent.events_sent} events", sent.num_turns, NUM_TURNS)

    story.sent.append(collect(world.gateway, people, seed=SEED, on_progress=progress))
    wait_for_events(world, story)
    watcher = world.watcher
    story.good_request = watcher.wait("crossing the threshold of pairs", watch.feedback_request, 30, "pairs")


def wait_for_events(world: World, story: Story) -> None:
    """Wait until every acknowledged event is stored or a dead letter."""

    def arrived(session: Session) -> bool | None:
        return watch.num_events(session) >= story.num_events_sent or None

    world.watcher.wait(f"storing {story.num_events_sent} events", arrived, 60, "ingest")


def retrain(world: World, request_id: UUID, update: Update) -> ModelVersionRow:
    """Wait while the DAG freezes, trains, evaluates and judges; return the challenger."""

    def probe(session: Session) -> RetrainRequestRow | None:
        run = watch.run_of(session, request_id)
        done, total = training_progress(Path(run.directory)) if run else (0, 1)
        update("training and evaluating" if run else "claim and freeze", done, total)
        return watch.ended_request(request_id)(session)

    world.watcher.wait("the retraining", probe, 600, "retrain")
    run = world.watcher.read(lambda session: watch.run_of(session, request_id))
    assert run is not None
    return world.watcher.read(lambda session: watch.model_of(session, run.run_id))


def training_progress(directory: Path) -> tuple[float, float]:
    """Return done and total of a run, as its `progress.json` says."""
    try:
        state = json.loads((directory / "progress.json").read_text())
        return float(state["done"]), float(state["total"])
    except (OSError, ValueError, KeyError):
        return 0, 1


def train_good(world: World, story: Story, update: Update) -> None:
    """The DAG that the threshold started makes a challenger, which passes its gates."""
    assert story.good_request is not None
    story.good = retrain(world, story.good_request.request_id, update)
    version = story.good.model_version
    story.good_gates = world.watcher.read(lambda session: watch.gate_results(session, version))
    if story.good.status != "passed":
        raise DemoFailed(f"the good challenger {version} is {story.good.status}: {reasons(story.good_gates)}")


def reasons(gates: list[dict[str, Any]]) -> str:
    """Return the gates that did not pass, with their reasons."""
    return "; ".join(f"{gate['gate']}: {gate['reason']}" for gate in gates if gate["verdict"] != "pass")


def promote_good(world: World, story: Story, update: Update) -> None:
    """Live traffic splits by person, and the sequential test promotes the challenger."""
    assert story.good is not None
    version = story.good.model_version
    rollout = world.watcher.wait("starting the rollout", watch.rollout_of(version), 30, "retrain")
    story.good_rollout = run_traffic(world, story, rollout.rollout_id, "visitor", update)
    if story.good_rollout.phase != Phase.PROMOTED:
        evidence = story.good_rollout.evidence
        proof = f"e-value {evidence.get('e_value', 0):.3g} after {evidence.get('num_pairs', 0)} pairs"
        ended = f"{story.good_rollout.phase} ({story.good_rollout.reason})"
        raise DemoFailed(f"the good challenger was {ended}, {proof}: read {world.place.logs}/controller.log")


def run_traffic(world: World, story: Story, rollout_id: UUID, prefix: str, update: Update) -> RolloutRow:
    """Send ever new people until the rollout has ended by itself; return its last state."""
    watcher = world.watcher
    ended = watch.ended_rollout(rollout_id)
    deadline = time.monotonic() + ROLLOUT_TIMEOUT_S

    def over() -> bool:
        watcher.check()
        return watcher.read(ended) is not None or time.monotonic() > deadline

    def progress(sent: Sent) -> None:
        if sent.num_turns % 20 == 0:
            row = watcher.read(lambda session: session.get_one(RolloutRow, rollout_id))
            update(describe(row), row.evidence.get("num_pairs", 0), 0)

    story.sent.append(
        keep_rating(world.gateway, GUIDED, until=Sometimes(over), seed=SEED, prefix=prefix, on_progress=progress)
    )
    row = watcher.wait("the end of the rollout", ended, 30, "controller")
    wait_for_events(world, story)
    return row


class Sometimes:
    """Asks a probe that reads the database at most four times a second, and no more once it said yes."""

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._next_at = 0.0
        self._is_over = False

    def __call__(self) -> bool:
        """Say whether the probe has said yes."""
        if not self._is_over and time.monotonic() > self._next_at:
            self._is_over = self._probe()
            self._next_at = time.monotonic() + 0.25
        return self._is_over


def describe(row: RolloutRow) -> str:
    """Return a rollout's state in a few words."""
    evidence = row.evidence
    e_value = evidence.get("e_value")
    proof = f", e-value {e_value:.2g} of {1 / row.alpha:.0f}" if e_value is not None else ""
    return f"{row.phase.replace('_', ' ')} {row.weight:.0%}{proof}, pairs"


def train_bad(world: World, story: Story, update: Update) -> None:
    """An imported offline file and a destructive recipe make a challenger that the gates stop."""
    path = write_bad_pairs(world.place.data / "offline_pairs.jsonl")
    with world.sessions.begin() as session:
        dataset_id = import_file(session, path, "offline-import")
        request, _ = open_request(
            session,
            crossing="manual:demo-offline-import",
            reason="an operator tries a vendor's offline pairs",
            method="dpo",
            dataset_id=dataset_id,
            spec=BAD_RECIPE,
        )
    story.bad = retrain(world, request.request_id, update)
    version = story.bad.model_version
    story.bad_gates = world.watcher.read(lambda session: watch.gate_results(session, version))
    rollout = world.watcher.read(watch.rollout_of(version))
    story.harmful_stopped_by_gates = story.bad.status == "rejected" and rollout is None
    if not story.harmful_stopped_by_gates:
        raise DemoFailed(f"the gates let the harmful challenger {version} pass (status {story.bad.status})")


def roll_back_bad(world: World, story: Story, update: Update) -> None:
    """An audited override lets the harmful challenger through; live traffic rolls it back on its own."""
    assert story.bad is not None
    version = story.bad.model_version
    now = datetime.now(UTC)
    with world.sessions.begin() as session:
        override_gates(session, version, OPERATOR, "demonstration: let live traffic judge what the gates stopped", now)
        rollout_id = create_rollout(
            session,
            canary_version=version,
            stable_version=story.good.model_version if story.good else "",
            policy=read_toml(world.place.root / "configs" / "rollout.demo.toml"),
            started_by=OPERATOR,
            now=now,
        )
    story.bad_rollout = run_traffic(world, story, rollout_id, "passerby", update)
    if story.bad_rollout.phase != Phase.ROLLED_BACK:
        raise DemoFailed(
            f"the harmful challenger was {story.bad_rollout.phase}: read {world.place.logs}/controller.log"
        )


def judge(world: World, story: Story, update: Update) -> None:
    """Ask base and promoted model what nobody asked before, and compare by the taste that the platform never saw."""
    assert story.good is not None
    questions = judge_questions() * ANSWERS_PER_QUESTION
    update("base", 0, 2)
    before = answers_of(world, story.base_version, story.base_directory.absolute(), questions)
    update("promoted", 1, 2)
    after = answers_of(world, story.good.model_version, Path(story.good.directory), questions)
    story.comparison = compare(questions, before, after, GUIDED)


def answers_of(world: World, version: str, directory: Path, questions: list[str]) -> list[str]:
    """Return a version's answers, straight from the runtime: these are nobody's chats."""
    load_arm(world, version, str(directory))
    return ask_all(Target(world.env["HONE_RUNTIME_URL"], model=version), questions)


def tell(world: World, show: Show, story: Story) -> None:
    """Run the stages after the start, in order."""
    with show.stage(f"{NUM_TURNS:,} rated turns over HTTP: thumbs, edits, choices", 25) as update:
        gather_feedback(world, story, update)
    pairs = world.watcher.read(watch.num_pairs)
    show.note(f"{story.num_events_sent:,} events, {pairs} preference pairs, threshold crossed")
    with show.stage("Airflow DAG: freeze, DPO with LoRA, gates, registry", 50) as update:
        train_good(world, story, update)
    show.note(summary(story.good_gates))
    with show.stage("canary on live traffic until the test decides", 30) as update:
        promote_good(world, story, update)
    show.note(f"promoted: {story.good_rollout.reason}" if story.good_rollout else "")
    with show.stage("a harmful challenger from an offline file", 45) as update:
        train_bad(world, story, update)
    show.note(f"stopped by its gates: {', '.join(stopping(story.bad_gates))}")
    with show.stage("an operator overrides the gates; live traffic judges", 10) as update:
        roll_back_bad(world, story, update)
    show.note(f"rolled back: {story.bad_rollout.reason}" if story.bad_rollout else "")
    with show.stage("base and promoted model, judged by the hidden taste", 12) as update:
        judge(world, story, update)


def stopping(gates: list[dict[str, Any]]) -> list[str]:
    """Return the names of the gates that did not pass, with their verdicts."""
    return [f"{gate['gate'].replace('_', ' ')} {gate['verdict']}" for gate in gates if gate["verdict"] != "pass"]


def summary(gates: list[dict[str, Any]]) -> str:
    """Return the verdicts in one line."""
    return "gates: " + ", ".join(f"{gate['gate'].replace('_', ' ')} {gate['verdict']}" for gate in gates)
