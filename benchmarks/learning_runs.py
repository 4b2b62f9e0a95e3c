"""Chains of rounds in the simulated world, each in a process of its own: feedback, training, hidden evaluation."""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.learning_world import Feedback, Row, Written, collect
from benchmarks.training_world import talking_world
from examples.support.bad_pairs import bad_pairs
from examples.support.corpus import as_prompt, fact_of, golden_checks, judge_questions
from examples.support.taste import TASTES, Taste, is_correct, score
from examples.support.users import User, make_users
from hone import gates
from hone.records import Verdict
from training.evaluate import evaluate
from training.export import export_model
from training.fit import Task, fit
from training.generate import Decoding, generate
from training.meter import Meter
from training.policy import load_model
from training.progress import Progress
from training.reward_model import train_reward_models
from training.run import stop_rule_measurements
from training.spec import Job, RunSpec, load_spec

Arm = Literal["dpo", "oracle", "kto", "ppo", "rloo"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "dpo.demo.toml"
QUESTIONS_EACH = 8
EVALUATION_SAMPLES = 5
DECODING = {"max_new_tokens": 160, "batch_size": 128}
BAD_RECIPE = {"learning_rate": 1e-3, "sft_weight": 0.0, "steps": 60, "stop_rules": "record"}
"""Pairs from an old manual, trained on hard and without the SFT term: what the gates must stop."""
RECIPES: dict[Arm, dict[str, Any]] = {
    "dpo": {},
    "oracle": {},
    "kto": {"method": "kto", "engine": "trl", "learning_rate": 1e-3, "batch_size": 16, "steps": 80},
    "ppo": {
        "method": "ppo",
        "learning_rate": 3e-4,
        "batch_size": 64,
        "steps": 25,
        "samples": {"per_prompt": 1, "max_new_tokens": 80},
        "ppo": {"minibatch_size": 16, "value_learning_rate": 1e-3, "kl_coefficient": 0.05},
    },
    "rloo": {
        "method": "rloo",
        "engine": "trl",
        "learning_rate": 2e-3,
        "batch_size": 64,
        "steps": 25,
        "beta": 0.05,
        "samples": {"per_prompt": 4, "max_new_tokens": 80},
    },
}
"""What differs from the demo's spec."""
REWARD_RECIPE = {"method": "reward_model", "learning_rate": 1e-3, "batch_size": 16, "epochs": 3, "steps": None}


@dataclass(frozen=True, slots=True)
class Chain:
    """Rounds that follow each other: each begins with the model of the one before, and with new users."""

    arm: Arm
    family: str
    seed: int
    num_rounds: int
    num_users: int
    "Of a round."
    noise: float
    "Mean share of judgements that come out as their opposite."
    base: int
    "Seed of the base model."


@dataclass
class Measured:
    """One model by the hidden taste: a number for each held-out question."""

    reward: Floats
    correct: Floats
    num_characters: float


@dataclass
class Outcome:
    """A chain's models, the base first, and what it took."""

    chain: Chain
    models: list[Measured] = field(default_factory=list)
    num_events: list[int] = field(default_factory=list)
    num_pairs: list[int] = field(default_factory=list)
    fired: list[dict[str, int]] = field(default_factory=list)
    cpu_s: float = 0.0


class Silent(Progress):
    """Says nothing."""

    def __init__(self) -> None:
        """Have no file."""
        self.meter = Meter()

    def stage(self, name: str) -> None:
        """Say nothing."""

    def keep(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep nothing."""

    def step(self, done: int, total: int, speed: Mapping[str, float] | None = None, **numbers: float) -> None:
        """Say nothing."""


def prepare() -> None:
    """Make this process as quiet and as single-threaded as a training run."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make_base(seed: int) -> int:
    """Pretrain the base of a seed unless it is there; return the seed."""
    prepare()
    talking_world(seed)
    return seed


def run_chain(chain: Chain) -> Outcome:
    """Return what became of one chain."""
    prepare()
    started = process_time()
    outcome, taste = Outcome(chain), TASTES[chain.family]
    model, tokenizer = talking_world(chain.base)
    outcome.models.append(measure(model, tokenizer, taste, chain.seed))
    for number in range(chain.num_rounds):
        feedback = one_round(model, tokenizer, chain, number)
        rows = rows_for(chain.arm, feedback)
        with tempfile.TemporaryDirectory() as scratch:
            result = fit(make_task(chain, model, tokenizer, rows, feedback, Path(scratch)))
            model = result.model.merge_and_unload().eval()
        outcome.models.append(measure(model, tokenizer, taste, chain.seed))
        outcome.num_events.append(feedback.num_events)
        outcome.num_pairs.append(len(rows))
        outcome.fired.append(result.fired)
    outcome.cpu_s = process_time() - started
    return outcome


def rows_for(arm: Arm, feedback: Feedback) -> list[Row]:
    """Return what an arm trains on."""
    return {"oracle": feedback.oracle_rows, "kto": feedback.labels}.get(arm, feedback.rows)


def one_round(model: Any, tokenizer: Any, chain: Chain, number: int) -> Feedback:
    """Return the feedback of new users on two answers to each of their questions."""
    seed = 1000 * chain.seed + number
    users = make_users(
        chain.num_users,
        TASTES[chain.family],
        seed,
        prefix=f"{chain.family}-{seed}",
        questions_each=QUESTIONS_EACH,
        mean_noise=chain.noise,
    )
    return collect(users, answer_twice(model, tokenizer, users, seed), seed)


def answer_twice(
    model: Any, tokenizer: Any, users: Sequence[User], seed: int
) -> dict[tuple[str, str], Sequence[Written]]:
    """Return two sampled answers to each question of each user."""
    asked = [(user.id, question) for user in users for question in user.questions]
    texts = write(model, tokenizer, [question for _, question in asked for _ in range(2)], seed)
    return {key: texts[2 * k : 2 * k + 2] for k, key in enumerate(asked)}


def write(model: Any, tokenizer: Any, questions: Sequence[str], seed: int) -> list[Written]:
    """Return one sampled answer to each question."""
    prompts = [as_prompt(question) for question in questions]
    found = generate(model, tokenizer, prompts, Decoding(temperature=1.0, seed=seed, **DECODING), Silent())
    return [Written(answer.text, answer.ended) for answer in found]


def measure(model: Any, tokenizer: Any, taste: Taste, seed: int) -> Measured:
    """Return hidden reward and correctness of sampled answers to the 160 held-out questions."""
    questions = [question for question in judge_questions() for _ in range(EVALUATION_SAMPLES)]
    written = write(model, tokenizer, questions, 900_000 + seed)
    facts = [fact_of(question) for question in questions]
    rewards = [score(taste, fact, one.text) for fact, one in zip(facts, written, strict=True)]
    right = [float(is_correct(fact, one.text) and one.ended) for fact, one in zip(facts, written, strict=True)]
    reward, correct = (np.array(column).reshape(-1, EVALUATION_SAMPLES).mean(1) for column in (rewards, right))
    return Measured(reward, correct, float(np.mean([len(one.text) for one in written])))


def make_task(chain: Chain, model: Any, tokenizer: Any, rows: list[Row], feedback: Feedback, directory: Path) -> Task:
    """Return an arm's training; PPO and RLOO get a reward model that was trained on the same round's pairs."""
    overrides = {**RECIPES[chain.arm], "seed": chain.seed, "stop_rules": "record"}
    if chain.arm in ("ppo", "rloo"):
        train_rewards(model, tokenizer, feedback.rows, directory / "reward", chain.seed)
        overrides["rewards"] = {"models": {str(directory / "reward" / "model"): 1.0}}
    return Task(model, tokenizer, rows, [], spec_of(overrides), directory, "r-bench", Silent())


def spec_of(overrides: dict[str, Any]) -> RunSpec:
    """Return the demo's spec with some keys replaced; keys that only DPO reads go for other methods."""
    return load_spec(CONFIG, {"checkpoint_steps": 100_000, "engine": "native", **overrides})


def train_rewards(model: Any, tokenizer: Any, rows: list[Row], directory: Path, seed: int) -> None:
    """Leave a reward model of the pairs in `directory/model`."""
    directory.mkdir()
    base = directory / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    spec = spec_of({**REWARD_RECIPE, "engine": "trl", "seed": seed})
    task = Task(*load_model(base), rows, [], spec, directory, "r-bench", Silent())
    train_reward_models(task, directory / "model")


@dataclass(frozen=True, slots=True)
class Trial:
    """A recipe that the gates judge, on a world's first round of feedback."""

    is_bad: bool
    family: str
    seed: int
    num_users: int
    noise: float
    base: int


def run_trial(trial: Trial) -> dict[str, Any]:
    """Return the verdict of the product's gates on a challenger of this recipe, and which gates failed it."""
    prepare()
    model, tokenizer = talking_world(trial.base)
    chain = Chain("dpo", trial.family, trial.seed, 1, trial.num_users, trial.noise, trial.base)
    feedback = one_round(model, tokenizer, chain, 0)
    overrides: dict[str, Any] = {"seed": trial.seed, **(BAD_RECIPE if trial.is_bad else {})}
    with tempfile.TemporaryDirectory() as scratch:
        job = write_job(Path(scratch), spec_of(overrides), feedback.rows, trial)
        rows = bad_pairs(seed=trial.seed) if trial.is_bad else rows_of_split(feedback.rows, "train")
        task = Task(model, tokenizer, rows, [], job.spec, Path(scratch), "r-bench", Silent())
        result = fit(task)
        challenger = export_model(result.model, tokenizer, Path(scratch) / "model")
        measured = evaluate(job, challenger, talking_world(trial.base), Silent())
    results = gates.judge({**measured, "stop_rules": stop_rule_measurements(result)}, job.spec.thresholds)
    return {
        "is_bad": trial.is_bad,
        "verdict": gates.overall(results).value,
        "failed": sorted(one.gate for one in results if one.verdict is Verdict.FAIL),
        "inconclusive": sorted(one.gate for one in results if one.verdict is Verdict.INCONCLUSIVE),
    }


def write_job(directory: Path, spec: RunSpec, rows: list[Row], trial: Trial) -> Job:
    """Return a job whose judges are this round's people, and whose golden tests are the demo's."""
    people = directory / "people"
    for place in (people, directory / "data"):
        place.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        write_lines(people / f"{split}.jsonl", rows_of_split(rows, split))
    own = bad_pairs(seed=trial.seed) if trial.is_bad else rows_of_split(rows, "train")
    write_lines(directory / "data" / "train.jsonl", own)
    checks = [{"prompt": list(check.prompt), "must_contain": list(check.must_contain)} for check in golden_checks()]
    write_lines(directory / "golden.jsonl", checks)
    return Job(
        run_id="r-bench",
        spec=spec,
        base_version="m-base",
        base_directory=directory,
        directory=directory,
        evaluation_data=people,
        golden_tests=directory / "golden.jsonl",
    )


def rows_of_split(rows: list[Row], split: str) -> list[Row]:
    """Return the rows of people who belong to a split, 70/10/20 by hash, as datasets have it."""
    bounds = {"train": (0.0, 0.7), "dev": (0.7, 0.8), "test": (0.8, 1.0)}[split]
    return [row for row in rows if bounds[0] <= random.Random(row["user_id"]).random() < bounds[1]]


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
