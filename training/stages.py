"""A retraining of several stages, such as SFT on corrected answers and then DPO on pairs: `method = "sft+dpo"`.

Each stage is a run of its own, on the model that the one before it made, and keeps its own row, checkpoints and model.
Keys of a request are the last stage's; those of an earlier one stand under `stages.METHOD`. No torch here.
"""

from collections.abc import Mapping
from typing import Any

from hone.errors import ConfigError
from hone.store.tables import RetrainRequestRow
from training.spec import KINDS, Method, merged

STAGES = "stages"
JOINED = "+"


def stages_of(request: RetrainRequestRow) -> tuple[Method, ...]:
    """Return the methods of the request, in order. Raises ConfigError where one is none."""
    methods = tuple(request.method.split(JOINED))
    unknown = [method for method in methods if method not in KINDS]
    if unknown:
        raise ConfigError(
            f"request {request.request_id} asks for method {request.method!r}: known are {list(KINDS)}, and several "
            f"joined by {JOINED}"
        )
    return methods  # type: ignore[return-value]


def split_stages(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the last stage's keys, and those of each earlier one. Raises ConfigError where these are no tables."""
    own = {key: value for key, value in overrides.items() if key != STAGES}
    earlier = overrides.get(STAGES, {})
    wrong = {str(name): value for name, value in dict(earlier).items() if not isinstance(value, Mapping)}
    if wrong or not earlier.keys() <= KINDS.keys():
        raise ConfigError(f"{STAGES} = {earlier!r}: write {STAGES}.METHOD.KEY, for instance {STAGES}.sft.epochs=1")
    return own, {name: dict(values) for name, values in earlier.items()}


def keys_of_stage(request: RetrainRequestRow, method: Method) -> dict[str, Any]:
    """Return what the request says of one of its stages, the dataset included."""
    own, earlier = split_stages(request.spec)
    is_last = method == stages_of(request)[-1]
    dataset = {"dataset": request.dataset_id}
    return {**own, **dataset} if is_last else merged(dataset, earlier.get(method, {}))
