"""Early stopping: how held-out rows fare at each checkpoint, and the best weights, kept beside those to go on from."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hone.errors import ProgramFailed
from training import checkpoint
from training.checkpoint import Checkpoint
from training.distributed import is_main, wait_for_all

FOLDER = "best"
"""Below the run's checkpoints."""


class Best:
    """The looks at held-out rows so far: (step, loss), the lower the better."""

    def __init__(self, checkpoints: Path, identity: Mapping[str, Any], patience: int | None) -> None:
        """Begin without a look; `patience`: looks without a better one until the run is over, None: never."""
        self.looks: list[tuple[int, float]] = []
        self._directory = checkpoints / FOLDER
        self._identity = dict(identity)
        self._patience = patience

    @property
    def step(self) -> int | None:
        """The step of the best look, the first of equal ones; None: there was none yet."""
        return min(self.looks, key=lambda look: look[1])[0] if self.looks else None

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        since = [step for step, _ in self.looks if self.step is not None and step > self.step]
        return self._patience is not None and len(since) >= self._patience

    def look(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Take up a look; the weights are on the disk afterwards if it is the best so far.

        The run's own checkpoint of this step must follow: a run that was killed between the two looks again.
        """
        self.looks.append((step, loss if math.isfinite(loss) else math.inf))
        if self.step != step or not is_main():
            return
        tensors = {name: weight.detach() for name, weight in weights.items()}
        kept = checkpoint.save(self._directory, Checkpoint(step, tensors, self._identity))
        for other in self._directory.glob("step-*"):
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)

    def take_up(self, looks: Sequence[Sequence[float]]) -> None:
        """Go on from the looks that a checkpoint holds."""
        self.looks = [(int(step), float(loss)) for step, loss in looks]

    def put_back(self, weights: Mapping[str, Tensor]) -> int | None:
        """Give the weights the values of the best look and return its step; without a look they stay.

        Raises:
            ProgramFailed: what was kept is damaged.
        """
        if self.step is None:
            return None
        wait_for_all()
        found = checkpoint.newest(self._directory, self._identity)
        if found is None or found.step != self.step:
            raise ProgramFailed(
                f"the best checkpoint, of step {self.step}, is missing or damaged in {self._directory}: remove "
                f"{self._directory.parent} and train again"
            )
        for name, weight in weights.items():
            weight.data.copy_(found.tensors[name])
        return self.step
