"""What other packages say: that which is expected is kept back, and nothing else."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from training.quiet import EXPECTED, quieten


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """What transformers writes from here on."""
    quieten()
    handler = next(one for one in logging.getLogger("transformers").handlers if type(one) is logging.StreamHandler)
    stream = io.StringIO()
    before = handler.setStream(stream)
    yield stream
    handler.setStream(before)


def test_expected_warnings_are_kept_back_and_others_are_shown(said: io.StringIO) -> None:
    logger = transformers_logging.get_logger("transformers.trainer")
    for text in (*EXPECTED, "There were missing keys in the checkpoint model loaded: ['lm_head.weight', 'a'].", "new"):
        logger.warning(text)
    shown = [line.removeprefix("[transformers] ") for line in said.getvalue().splitlines()]
    assert shown == ["There were missing keys in the checkpoint model loaded: ['lm_head.weight', 'a'].", "new"]


def test_a_new_head_of_a_reward_model_is_expected_and_any_other_missing_weight_is_told(
    said: io.StringIO, tiny_base: Path, tmp_path: Path
) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, local_files_only=True)
    assert said.getvalue() == ""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, local_files_only=True)
    weights = {name: value for name, value in model.state_dict().items() if "layers.0.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, local_files_only=True)
    assert "up_proj" in said.getvalue()
