"""What all of TRL's trainers share here: their arguments, their figures, stop rules, and checkpoints that are verified.

TRL writes a checkpoint file by file. We hash what it wrote and mark it whole; only such a one is ever gone on from, by
its explicit path.
"""

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from hone.errors import ConfigError, ProgramFailed
from training import checkpoint
from training.distributed import is_main, main_first, rows_of_each, wait_for_all, world
from training.fit import Task
from training.result import TrainResult
from training.spec import RunSpec
from training.stop_rules import fired

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
"""TRL's folders are named `checkpoint-<step>`."""
DEV_LOSS = "eval_loss"
KEPT = 2
"""One that is whole while the next is being written."""
STEP_0_TOLERANCE = 1e-3
OPTIMIZERS = {"adamw": "adamw_torch", "adafactor": "adafactor", "adamw_8bit": "adamw_bnb_8bit"}

Figures = Callable[[Mapping[str, float]], dict[str, float]]
"""TRL's log line of one step -> ours."""


def arguments(task: Task) -> dict[str, Any]:
    """Return the spec in the words of transformers' `TrainingArguments`.

    TRL's defaults of bf16 and recomputed activations cost a CPU a factor of 3, and its filter hides losses that are no
    numbers: all are set here.
    """
    spec = task.spec
    micro, accumulated = rows_of_each(spec.batch_size, spec.micro_batch_size)
    return {
        "output_dir": str(task.directory / "trl"),
        "learning_rate": spec.learning_rate,
        "warmup_steps": spec.warmup_steps,
        "weight_decay": spec.weight_decay,
        "optim": OPTIMIZERS[spec.optimizer],
        "max_steps": spec.steps or -1,
        "num_train_epochs": spec.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "activation_checkpointing": spec.gradient_checkpointing,
        "max_grad_norm": spec.max_grad_norm,
        "bf16": spec.precision == "bf16",
        "seed": spec.seed,
        "data_seed": spec.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": spec.checkpoint_steps,
        "save_total_limit": KEPT,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        **({"ddp_backend": "gloo"} if world() > 1 and not torch.cuda.is_available() else {}),
        **early_stopping(spec, bool(task.dev)),
    }


def early_stopping(spec: RunSpec, has_dev: bool) -> dict[str, Any]:
    """Return the arguments with which the best checkpoint on the dev rows is kept; none without patience or rows."""
    if spec.stop.patience is None or not has_dev:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": spec.checkpoint_steps,
        "per_device_eval_batch_size": spec.batch_size,
        "load_best_model_at_end": True,
        "metric_for_best_model": DEV_LOSS,
        "greater_is_better": False,
    }


def run_trainer(trainer: Any, task: Task, figures: Figures, dropped: dict[str, int] | None = None) -> TrainResult:
    """Train to the end or to a stop rule, going on from the newest verified checkpoint of this run.

    Raises:
        ProgramFailed: the loss is no longer a number.
    """
    result = TrainResult(trainer.model, dropped=dropped or {})
    if task.spec.adapter == "qlora":
        keep_in_fp32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Recorder(result, task, figures))
    trainer.add_callback(Sealer(task))
    fetch = trainer.get_batch_samples

    def batches(*args: Any, **kwargs: Any) -> Any:
        """Return the next step's rows; none where the checkpoint is that of a run that had ended."""
        return ([], None) if trainer.control.should_training_stop else waited(task, fetch, *args, **kwargs)

    trainer.get_batch_samples = batches
    if trainer.args.load_best_model_at_end:
        trainer.add_callback(Patience(task.spec.stop.patience))
    task.progress.stage("train")
    trainer.train(resume_from_checkpoint=resume_path(task))
    result.model = trainer.model.eval()
    result.best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    result.fired = fired(result.history, task.spec.stop)
    return result


def waited(task: Task, fetch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `fetch` gives; its time is counted as waiting for data."""
    with task.progress.waiting():
        return fetch(*args, **kwargs)


def keep_in_fp32(model: Any) -> None:
    """Give what is trained fp32 again: TRL turns an adapter over 4 bits into bf16, which rounds small steps away."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def identity(task: Task) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be gone on from."""
    found = {"run_id": task.run_id, "threads": torch.get_num_threads()}
    return {**found, "processes": world()} if world() > 1 else found


def resume_path(task: Task) -> str | None:
    """Return the newest verified checkpoint; what was begun after it is removed, since it will be written again."""
    directory = task.directory / "trl"
    found = checkpoint.newest_path(directory, identity(task), CHECKPOINT)
    last = checkpoint.step_of(found[0]) if found else -1
    with main_first():
        for path in directory.glob(f"{CHECKPOINT}-*"):
            if checkpoint.step_of(path) > last:
                shutil.rmtree(path)
    if found:
        logger.info("going on from %s", found[0])
    return str(found[0]) if found else None


class Sealer(TrainerCallback):  # type: ignore[misc]
    """Hashes each checkpoint that TRL has written."""

    def __init__(self, task: Task) -> None:
        """Seal the checkpoints of this task."""
        self._task = task

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the newest folder whole, once every process has written its part."""
        wait_for_all()
        if not is_main():
            return
        path = Path(args.output_dir) / f"{CHECKPOINT}-{state.global_step}"
        checkpoint.seal(path, {"step": state.global_step, **identity(self._task)})


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Copies TRL's figures into the result, and stops the run where the spec says so."""

    def __init__(self, result: TrainResult, task: Task, figures: Figures) -> None:
        """Write to `result`."""
        self._result = result
        self._task = task
        self._figures = figures
        self._num_tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up what was logged before a checkpoint."""
        before = [logs for logs in state.log_history if "loss" in logs]
        self._result.history[:] = [self._figures(logs) for logs in before]
        self._num_tokens = before[-1].get("num_tokens", 0.0) if before else 0.0
        if before and (state.global_step >= state.max_steps or self._is_stopped):
            control.should_training_stop = True

    @property
    def _is_stopped(self) -> bool:
        """Whether a stop rule has fired that ends the run."""
        return self._task.spec.stop_rules == "stop" and bool(fired(self._result.history, self._task.spec.stop))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Take one step's figures. Raises ProgramFailed on a loss that is no number, ConfigError on a wrong start."""
        if logs and args.metric_for_best_model in logs:
            name = DEV_LOSS if args.metric_for_best_model == DEV_LOSS else "eval_score"
            self._task.progress.keep(state.global_step, {name: logs[args.metric_for_best_model]})
        if not logs or "loss" not in logs:
            return
        step = self._figures(logs)
        if not math.isfinite(step["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise ProgramFailed(f"the loss is {step['loss']} at step {state.global_step}: lower learning_rate")
        if not self._result.history and abs(step.get("margin", 0.0)) > STEP_0_TOLERANCE:
            raise ConfigError(
                f"the first step's margin is {step['margin']:.4f} and not 0 (loss ln 2): policy and reference differ "
                "before training; merge the base's adapter into it first"
            )
        self._result.history.append(step)
        tokens, self._num_tokens = logs.get("num_tokens", 0.0) - self._num_tokens, logs.get("num_tokens", 0.0)
        shown = ("loss", "margin", "reward")
        self._task.progress.record(state.global_step, state.max_steps, step, shown, tokens=max(0.0, tokens))
        if self._is_stopped:
            control.should_training_stop = True


class Patience(TrainerCallback):  # type: ignore[misc]
    """Ends a run after so many looks at held-out rows without a better one.

    They are counted in the log that a checkpoint keeps, so that a run that was killed, even after it had ended, looks
    and stops where it would have. (Transformers' own callback begins to count anew.)
    """

    def __init__(self, patience: int | None) -> None:
        """End the run after `patience` looks; None: never."""
        self._patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Train no further from the checkpoint of a run that had ended."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop where patience has run out with this look."""
        sign = -1 if args.greater_is_better else 1
        losses = [sign * logs[args.metric_for_best_model] for logs in state.log_history if is_look(logs, args)]
        if self._patience is not None and since_best(losses) >= self._patience:
            control.should_training_stop = True


def is_look(logs: Mapping[str, float], args: Any) -> bool:
    """Say whether a line of the log is of a look at held-out rows."""
    return args.metric_for_best_model in logs


def since_best(losses: Sequence[float]) -> int:
    """Return how many losses came after the lowest one, the first of equal ones; one that is no number is the worst."""
    known = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return len(known) - 1 - known.index(min(known)) if known else 0
