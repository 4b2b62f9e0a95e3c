"""RLOO (arXiv:2402.14740) and GRPO (arXiv:2402.03300) through TRL: answers to one prompt are compared with each other.

Rewards are the spec's models and functions. The held-out signal and the share of distinct answers are measured by the
same way with weight 0, so that stop rules see them and the policy does not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from training.adapter import peft_config
from training.fit import Task
from training.ppo_samples import usable_prompts, watched_prompts
from training.result import TrainResult
from training.reward_set import Chat, Scorer, load_function, load_rewards
from training.spec import RunSpec
from training.trl_engine import arguments, run_trainer

HELD_OUT, DISTINCT = "held_out", "distinct_share"


def train_rloo(task: Task) -> TrainResult:
    """Train with leave-one-out baselines. Raises like `fit`."""
    return train(task, RLOOTrainer, RLOOConfig)


def train_grpo(task: Task) -> TrainResult:
    """Train with group-normalised advantages. Raises like `fit`."""
    return train(task, GRPOTrainer, GRPOConfig)


def train(task: Task, trainer_class: Any, config_class: Any) -> TrainResult:
    """Train with one of TRL's online trainers."""
    spec = task.spec
    prompts, dropped = usable_prompts(task)
    rewards = [(named(scorer, name), weight) for name, (weight, scorer) in load_rewards(spec).items()]
    rewards.append((named(distinct_share, DISTINCT), 0.0))
    if spec.rewards.held_out:
        rewards.append((named(load_function(spec.rewards.held_out), HELD_OUT), 0.0))
    shared = arguments(task)
    watched = watched_prompts(task)
    torch.manual_seed(spec.seed)
    trainer = trainer_class(
        task.model,
        [scorer for scorer, _ in rewards],
        config_class(
            beta=spec.beta,
            num_generations=spec.samples.per_prompt,
            max_completion_length=spec.samples.max_new_tokens,
            temperature=spec.samples.temperature,
            reward_weights=[weight for _, weight in rewards],
            **(shared | (watching(spec, shared) if watched else {})),
        ),
        train_dataset=dataset_of(prompts),
        eval_dataset=dataset_of(watched) if watched else None,
        processing_class=task.tokenizer,
        peft_config=peft_config(spec),
    )
    trainer.evaluate = with_same_draws(trainer.evaluate, spec.seed)
    return run_trainer(trainer, task, figures, dropped)


def dataset_of(chats: Sequence[Chat]) -> Dataset:
    """Return the prompts as TRL reads them."""
    return Dataset.from_list([{"prompt": chat} for chat in chats])


def watching(spec: RunSpec, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return how held-out prompts choose the checkpoint: by the held-out signal, else the reward; one answer each."""
    return {
        "metric_for_best_model": f"eval_rewards/{HELD_OUT}/mean" if spec.rewards.held_out else "eval_reward",
        "greater_is_better": True,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": shared["per_device_train_batch_size"],
    }


def with_same_draws(look: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """Return a look at held-out prompts that draws the same random numbers each time, and none of the run's."""

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return look(*args, **kwargs)

    return evaluate


def figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Return one step's figures; TRL's KL is a mean over tokens, ours over answers."""
    found = {
        "loss": logs["loss"],
        "reward": logs["reward"],
        "end_rate": 1 - logs["completions/clipped_ratio"],
        "length": logs["completions/mean_length"],
    }
    if "kl" in logs:
        found["kl"] = logs["kl"] * logs["completions/mean_length"]
    return found | {
        name: logs[f"rewards/{name}/mean"] for name in (HELD_OUT, DISTINCT) if f"rewards/{name}/mean" in logs
    }


def named(scorer: Scorer, name: str) -> Callable[..., list[float]]:
    """Return the scorer as TRL calls it: under a name for its log, with answers as lists of messages."""

    def score(prompts: Sequence[Chat], completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in completions]
        return [float(value) for value in scorer(prompts=list(prompts), completions=texts)]

    score.__name__ = name
    return score


def distinct_share(prompts: Sequence[Chat], completions: Sequence[str]) -> list[float]:
    """Return, for each answer, the share of distinct ones among them."""
    return [len(set(completions)) / len(completions)] * len(completions)
