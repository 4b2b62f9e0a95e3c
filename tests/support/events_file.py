"""Reads TensorBoard's event files back, by TensorBoard's own reader."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def events_of(directory: Path) -> dict[str, dict[int, float]]:
    """Each figure's values by step."""
    reader = EventAccumulator(str(directory))
    reader.Reload()
    return {
        tag: {event.step: float(make_ndarray(event.tensor_proto)) for event in reader.Tensors(tag)}
        for tag in reader.Tags()["tensors"]
    }
