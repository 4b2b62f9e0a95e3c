"""PPO: its equations against numbers worked out by hand, and the whole against a bandit whose optimum is known."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import tensor

from hone.errors import NotEnoughData
from tests.support.training import make_task, row
from training.policy import load_model
from training.ppo import Run, train_ppo
from training.ppo_math import KlController, advantages, policy_loss, token_rewards, value_loss, whitened
from training.ppo_samples import Drawn, num_turns, penalties, turn, usable_prompts

MASK = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
"""An answer of three tokens and one of one."""
ONE_TOKEN: dict[str, Any] = {
    "method": "ppo",
    "batch_size": 64,
    "steps": 30,
    "adapter": "full",
    "learning_rate": 3e-3,
    "samples": {"per_prompt": 64, "max_new_tokens": 1},
    "rewards": {"functions": {"tests.support.rewards:first_half": 1.0}},
    "ppo": {
        "kl_coefficient": 0.5,
        "kl_horizon": 1e12,
        "whiten_rewards": False,
        "missing_end_penalty": 0.0,
        "minibatch_size": 32,
    },
}
"""A bandit: one prompt, one token, a reward of 1 for about half of the arms, and a coefficient that stays."""


def test_the_score_comes_at_the_last_token_and_every_token_pays_for_leaving_the_reference() -> None:
    logps = tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    reference = tensor([[-1.5, -2.0, -1.0], [-3.0, -9.0, -9.0]])
    rewards = token_rewards(tensor([5.0, -1.0]), logps, reference, MASK, 0.1)
    assert torch.allclose(rewards, tensor([[-0.05, 0.0, 5.2], [-1.2, 0.0, 0.0]]))


def test_advantages_are_those_worked_out_by_hand() -> None:
    """γ = 0.9, λ = 0.5. First answer: δ = (0 + .9·.4 - .2, 0 + .9·.6 - .4, 1 - .6) = (.16, .14, .4)."""
    rewards = tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    values = tensor([[0.2, 0.4, 0.6], [0.5, 7.0, 7.0]])
    third = 0.4
    second = 0.14 + 0.45 * third
    first = 0.16 + 0.45 * second
    expected = tensor([[first, second, third], [1.5, 0.0, 0.0]])
    assert torch.allclose(advantages(rewards, values, MASK, 0.9, 0.5), expected)


def test_whitened_numbers_have_deviation_1_over_what_was_written() -> None:
    values = tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    found = whitened(values, MASK)
    written = found[MASK > 0]
    assert written.mean().item() == pytest.approx(0, abs=1e-6)
    assert written.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert found[1, 1].item() == 0
    assert whitened(values, MASK, centre=False)[MASK > 0].mean().item() == pytest.approx(3, abs=1e-4)


def test_a_ratio_beyond_the_clip_range_earns_nothing_more_but_still_pays() -> None:
    """Ratios 1.5, 0.5, 1.5 with advantages 1, 1, -1 and a clip of 0.2: min(1.5, 1.2), min(.5, .8), min(-1.5, -1.2)."""
    old = torch.zeros(1, 3)
    new = tensor([[1.5, 0.5, 1.5]]).log().requires_grad_()
    loss = policy_loss(new, old, tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3), 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5) / 3)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([0.0, -0.5 / 3, 1.5 / 3])


def test_the_worse_of_a_clipped_and_an_unclipped_value_counts() -> None:
    """Old value 0, return 1: a value of .5 is clipped to .2 (error .64); one of -.1 is not clipped (error 1.21)."""
    loss = value_loss(tensor([[0.5, -0.1]]), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 1.21) / 2)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        pytest.param(6.0, 0.1, id="on target"),
        pytest.param(6.6, 0.1 * (1 + 0.1 * 0.05), id="a little above"),
        pytest.param(600.0, 0.1 * (1 + 0.2 * 0.05), id="far above: at most 0.2"),
        pytest.param(0.0, 0.1 * (1 - 0.2 * 0.05), id="below"),
    ],
)
def test_the_pull_to_the_reference_is_steered(kl: float, expected: float) -> None:
    controller = KlController(0.1, 6.0, 1000.0)
    controller.update(kl, 50)
    assert controller.coefficient == pytest.approx(expected)


def test_a_bandit_is_led_to_its_optimum(tiny_base: Path, tmp_path: Path) -> None:
    """The optimum of reward minus β · KL is the reference times exp(reward / β), normalised."""
    task = make_task(load_model(tiny_base), tmp_path, [row(0)], **ONE_TOKEN)
    tokenizer, beta = task.tokenizer, 0.5
    texts = tokenizer.batch_decode([[k] for k in range(len(tokenizer))], skip_special_tokens=True)
    good = tensor([text[:1].lower() < "m" for text in texts])
    prompt = tokenizer.apply_chat_template(row(0)["prompt"], add_generation_prompt=True, return_dict=False)

    def share(model: Any) -> float:
        with torch.no_grad():
            return float(model(input_ids=tensor([prompt])).logits[0, -1].softmax(-1)[good].sum())

    before = share(task.model)
    optimum = before * math.exp(1 / beta) / (before * math.exp(1 / beta) + 1 - before)
    result = train_ppo(task)
    assert optimum - before > 0.2
    assert share(result.model) == pytest.approx(optimum, abs=0.06)
    values = [step["value_loss"] for step in result.history]
    assert sum(values[-5:]) < 0.7 * sum(values[:5]), "the value head learns too"


def test_value_and_policy_learn_apart(tiny_base: Path, tmp_path: Path) -> None:
    run = Run(make_task(load_model(tiny_base), tmp_path, [row(0)], **{**ONE_TOKEN, "adapter": "lora"}))
    drawn = [Drawn((5, 6), (7, 8), True)]
    _, values, mask = run.look(run.policy, drawn)
    value_loss(values, values.detach(), values.detach() + 1, mask, 0.2).backward()
    assert run.head.weight.grad is not None
    assert all(weight.grad is None for weight in run.policy.parameters())


def test_an_answer_that_was_cut_off_or_is_long_pays(tiny_base: Path, tmp_path: Path) -> None:
    fields = {**ONE_TOKEN, "ppo": {"missing_end_penalty": 2.0, "length_penalty": 0.1, "free_tokens": 3}}
    spec = make_task(load_model(tiny_base), tmp_path, [row(0)], **fields).spec
    drawn = [Drawn((1,), (2,) * 3, True), Drawn((1,), (2,) * 5, True), Drawn((1,), (2,) * 4, False)]
    assert penalties(drawn, spec).tolist() == pytest.approx([0.0, 0.2, 2.1])


def test_every_prompt_comes_once_before_one_comes_again(tiny_base: Path, tmp_path: Path) -> None:
    rows = [row(k % 6) for k in range(12)]
    fields = {**ONE_TOKEN, "batch_size": 4, "samples": {"per_prompt": 2, "max_new_tokens": 4}, "epochs": 2}
    task = make_task(load_model(tiny_base), tmp_path, rows, **fields)
    prompts, dropped = usable_prompts(task)
    assert (len(prompts), dropped) == (6, {"too_long": 0}), "each is there once"
    assert num_turns(6, task.spec) == 6
    asked = [str(chat) for step in range(6) for chat in turn(prompts, step, task.spec)]
    assert asked[0] == asked[1]
    for epoch in (asked[:12], asked[12:]):
        assert sorted(epoch) == sorted(str(chat) for chat in prompts for _ in range(2))
    with pytest.raises(NotEnoughData, match="leaves room"):
        usable_prompts(make_task(load_model(tiny_base), tmp_path, rows, **fields, max_length=8))
