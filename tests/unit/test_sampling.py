"""Our sampler against transformers' own generation, and against the probabilities that it should draw by."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_model import make_tiny_model, sentences
from training.adapter import trainable
from training.generate import Decoding, generate, generate_plainly
from training.pairs import ids_of
from training.policy import load_model
from training.progress import Progress
from training.sampling import Limits, is_suited, sample
from training.spec import RunSpec

ENDS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model, tokenizer = load_model(make_tiny_model(tmp_path_factory.mktemp("base")))
    with torch.no_grad():  # Random weights say nearly the same whatever comes before: larger ones do not.
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.mul_(6.0 if weight.ndim == 2 else 1.0)
    return model, tokenizer


@pytest.fixture(scope="module")
def prompts(loaded: tuple[Any, Any]) -> list[tuple[int, ...]]:
    found = ids_of(sentences()[:20], loaded[1])
    return [ids[: 3 + k % 7] for k, ids in enumerate(found)]


def greedy(model: Any, prompt: tuple[int, ...], limit: int, ends: frozenset[int]) -> list[int]:
    written = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return list(written)


@pytest.mark.parametrize("num_slots", [1, 3, 64])
def test_the_likeliest_answers_are_those_of_transformers_one_by_one(
    loaded: tuple[Any, Any], prompts: list[tuple[int, ...]], num_slots: int
) -> None:
    """Whatever stands beside a prompt, and though slots are refilled and dropped while others grow."""
    model, _ = loaded
    ends = frozenset(token for prompt in prompts[:6] for token in greedy(model, prompt, 9, ENDS)[4:6])
    expected = [greedy(model, prompt, 12, ends) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1, "they must end at different times"
    found = sample(model, prompts, Limits(num_slots, 12, temperature=0.0), ends)
    assert [one.ids for one in found] == expected
    assert [one.ended for one in found] == [ids[-1] in ends for ids in expected]


def test_tokens_are_drawn_with_the_models_probabilities(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    prompt, number = (3, 50, 60), 4000
    with torch.inference_mode():
        expected_V = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1] / 2.0, -1)
    drawn = sample(model, [prompt] * number, Limits(number, 1, temperature=2.0), ENDS)
    counts_V = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=len(expected_V)).double()
    likely_V = expected_V * number >= 5
    expected = torch.cat([expected_V[likely_V], expected_V[~likely_V].sum()[None]]).double() * number
    counts = torch.cat([counts_V[likely_V], counts_V[~likely_V].sum()[None]])
    freedom = len(expected) - 1
    assert freedom >= 5
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_equal_seeds_give_equal_answers_and_others_do_not(
    loaded: tuple[Any, Any], prompts: list[tuple[int, ...]]
) -> None:
    model, _ = loaded
    runs = [[one.ids for one in sample(model, prompts, Limits(4, 8, seed=seed), ENDS)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_equal_prompts_are_read_once_and_answered_differently(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import sampling

    model, _ = loaded
    read: list[int] = []
    plain = sampling.read_prompts
    monkeypatch.setattr(sampling, "read_prompts", lambda *given: read.append(len(given[2])) or plain(*given))
    answers = sample(model, [(3, 50), (3, 60)] * 8, Limits(16, 6), ENDS)
    assert read == [2]
    assert len({tuple(one.ids) for one in answers}) > 8


def test_an_adapter_counts_and_is_left_as_it_was(loaded: tuple[Any, Any], prompts: list[tuple[int, ...]]) -> None:
    model, _ = loaded
    policy = trainable(load_model(Path(model.config._name_or_path))[0], RunSpec())
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    limits = Limits(8, 6, temperature=0.0)
    found = [one.ids for one in sample(policy, prompts, limits, ENDS)]
    with policy.disable_adapter():
        bare = [greedy(policy, prompt, 6, ENDS) for prompt in prompts]
    assert found == [greedy(policy, prompt, 6, ENDS) for prompt in prompts] != bare
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_models_that_look_at_a_window_or_change_their_logits_go_through_transformers(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    assert is_suited(model, (3, 50, 60))
    chats = [[{"role": "user", "content": text}] for text in sentences()[:3]]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    decoding, progress = Decoding(0.0, 6, 2), Progress(tmp_path / "p.json")
    fast = generate(model, tokenizer, chats, decoding, progress)
    assert fast == generate_plainly(model, tokenizer, ids_of(texts, tokenizer), decoding, progress)
    monkeypatch.setattr(model.config, "sliding_window", 4, raising=False)
    assert not is_suited(model, (3, 50, 60))
    monkeypatch.setattr(model.config, "sliding_window", None)
    monkeypatch.setattr(
        model.lm_head, "forward", lambda hidden: 2 * torch.nn.functional.linear(hidden, model.lm_head.weight)
    )
    assert is_suited(model, (3, 50, 60)), "the head is asked itself"
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: halved(plain(**given)))
    assert not is_suited(model, (3, 50, 60))


def halved(output: Any) -> Any:
    output.logits = output.logits / 2
    return output
