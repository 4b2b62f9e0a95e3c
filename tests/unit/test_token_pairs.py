"""Rows become token ids, and what a trainer would learn wrongly is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from hone.errors import ConfigError, NotEnoughData
from tests.support.tiny_model import make_tiny_model
from tests.support.training import row
from training.pairs import check_tokenizer, encode_pairs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("model")))


def test_both_answers_end_with_the_one_end_token(tokenizer: Any) -> None:
    pairs, dropped = encode_pairs([row(k) for k in range(5)], tokenizer, 200)
    assert not any(dropped.values())
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            assert answer[-1] == tokenizer.eos_token_id
            assert answer.count(tokenizer.eos_token_id) == 1


def test_prompt_and_answer_together_are_what_the_server_sees(tokenizer: Any) -> None:
    (pair,), _ = encode_pairs([row(0)], tokenizer, 200)
    prompt = tokenizer.apply_chat_template(row(0)["prompt"], add_generation_prompt=True, return_dict=False)
    assert list(pair.prompt) == prompt
    assert tokenizer.decode(pair.chosen, skip_special_tokens=True) == row(0)["chosen"]


def test_blanks_that_a_template_puts_behind_the_end_are_not_trained_on(tokenizer: Any) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("{% else %}", "{{ '\\n' }}{% else %}")
    try:
        (pair,), _ = encode_pairs([row(0)], tokenizer, 200)
    finally:
        tokenizer.chat_template = template
    assert pair.chosen[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("fault", "fields"),
    [
        pytest.param("too_long", {"chosen": "page " * 100}, id="longer than max_length: dropped, not cut"),
        pytest.param("end_tokens", {"chosen": "one<|end|>two"}, id="an end token inside"),
    ],
)
def test_a_pair_that_would_teach_something_wrong_is_dropped_and_counted(
    tokenizer: Any, fault: str, fields: dict[str, Any]
) -> None:
    pairs, dropped = encode_pairs([row(0), row(1, **fields)], tokenizer, 90)
    assert len(pairs) == 1
    assert dropped == {"not_a_prefix": 0, "end_tokens": 0, "too_long": 0} | {fault: 1}


def test_a_template_without_an_end_token_is_refused(tokenizer: Any) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("m['content'] + '<|end|>' }}{% endgen", "m['content'] }}{% endgen")
    try:
        with pytest.raises(NotEnoughData, match="'end_tokens': 3"):
            encode_pairs([row(k) for k in range(3)], tokenizer, 200)
    finally:
        tokenizer.chat_template = template


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"pad_token_id": 5}, "must differ", id="pad is end"),
        pytest.param({"pad_token_id": None}, "must differ", id="no pad"),
        pytest.param({"chat_template": None}, "no chat template", id="no template"),
        pytest.param({"eos_token_id": 7}, "the model stops at", id="generation stops elsewhere"),
    ],
)
def test_a_tokenizer_that_hides_the_end_is_refused(fields: dict[str, Any], words: str) -> None:
    plain = {"chat_template": "x", "pad_token_id": 0, "pad_token": "p", "eos_token_id": 5, "eos_token": "e"}
    with pytest.raises(ConfigError, match=words):
        check_tokenizer(SimpleNamespace(**(plain | fields)), [5])
