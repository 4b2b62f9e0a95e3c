"""The same DPO run through TRL's own trainer: for architectures that the native engine refuses, and as its oracle.

TRL knows no weights of pairs and resumes nothing here; a killed run starts anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from hone.errors import ConfigError
from training.dpo import TrainResult, lora_config
from training.pairs import TokenPair
from training.progress import Progress
from training.spec import RunSpec
from training.stop_rules import fired

FIGURES = {"margin": "rewards/margins", "accuracy": "rewards/accuracies", "chosen_logps": "logps/chosen"}
"""Ours -> TRL's names."""


def train_with_trl(
    model: Any, tokenizer: Any, pairs: Sequence[TokenPair], spec: RunSpec, directory: Path, progress: Progress
) -> TrainResult:
    """Train a fresh adapter with `DPOTrainer`.

    Raises:
        ConfigError: pairs have weights other than 1.
    """
    if any(pair.weight != 1.0 for pair in pairs):
        raise ConfigError('engine = "trl" knows no weights of pairs, and some differ from 1: use engine = "native"')
    trainer = make_trainer(model, tokenizer, pairs, spec, directory)
    result = TrainResult(trainer.model)
    trainer.add_callback(Recorder(result, spec, progress))
    progress.stage("train")
    trainer.train()
    result.fired = fired(result.history, spec.stop)
    return result


def make_trainer(model: Any, tokenizer: Any, pairs: Sequence[TokenPair], spec: RunSpec, directory: Path) -> Any:
    """Return TRL's trainer for the spec, a fresh adapter on the model; the reference is the model without it."""
    torch.manual_seed(spec.seed)
    rows = [
        {
            "prompt": pair.row["prompt"],
            "chosen": [{"role": "assistant", "content": pair.row["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair.row["rejected"]}],
        }
        for pair in pairs
    ]
    return DPOTrainer(
        model,
        None,
        trl_config(spec, directory),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(spec.lora),
    )


def trl_config(spec: RunSpec, directory: Path) -> DPOConfig:
    """Return the spec in TRL's words. TRL's defaults of bf16 and gradient checkpointing cost a CPU a factor of 3."""
    with_sft = spec.sft_weight > 0
    return DPOConfig(
        str(directory),
        loss_type=["sigmoid", "sft"] if with_sft else ["sigmoid"],
        loss_weights=[1.0, spec.sft_weight] if with_sft else [1.0],
        beta=spec.beta,
        learning_rate=spec.learning_rate,
        warmup_steps=spec.warmup_steps,
        max_steps=spec.steps or -1,
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        max_length=spec.max_length,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Copies TRL's figures into the result, and stops the run where the spec says so."""

    def __init__(self, result: TrainResult, spec: RunSpec, progress: Progress) -> None:
        """Write to `result`."""
        self._result = result
        self._spec = spec
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Take one step's figures."""
        if not logs or "loss" not in logs:
            return
        figures = {name: logs[theirs] for name, theirs in FIGURES.items()}
        # TRL logs no reference figures: the implicit reward of the chosen answers gives them back.
        reference = logs["logps/chosen"] - logs["rewards/chosen"] / self._spec.beta
        self._result.history.append({"loss": logs["loss"], **figures, "reference_chosen_logps": reference})
        self._progress.step(len(self._result.history), state.max_steps, loss=logs["loss"], margin=figures["margin"])
        if self._spec.stop_rules == "stop" and fired(self._result.history, self._spec.stop):
            control.should_training_stop = True
