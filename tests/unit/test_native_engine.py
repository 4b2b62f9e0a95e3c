"""The fast parts of the native engine, each against the plain way to compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners import lora
from torch import Tensor, nn

from tests.support.tiny_model import make_tiny_model
from tests.support.training import QUICK, row
from training.adapter import trainable
from training.dpo import dpo_loss, train_dpo
from training.fast_lora import fast_lora, merged_lora
from training.fit import Task
from training.lm_head import head_logps, logps_of
from training.pairs import TokenPair, encode_pairs
from training.policy import attends_to_all, can_share_prompt, load_model, pair_logps
from training.progress import Progress
from training.reference import KEPT_BASES, fingerprint, reference_logps
from training.shared_prompt import attention_mask, block_mask, dense_mask, lay_out
from training.spec import RunSpec, merged

PAD = 0
LOGPS = (-20.0, -25.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_model(tmp_path_factory.mktemp("base"))


def spec(**overrides: Any) -> RunSpec:
    return RunSpec.model_validate(merged(QUICK, overrides))


def encode(tokenizer: Any, number: int = 8) -> list[TokenPair]:
    return encode_pairs([row(k) for k in range(number)], tokenizer, 256)[0]


def pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    """Token ids that say what they are: 100s prompt, 200s chosen, 300s rejected."""
    ids = [tuple(range(at, at + number)) for at, number in ((100, prompt), (200, chosen), (300, rejected))]
    return TokenPair(ids[0], ids[1], ids[2], 1.0, {})


def with_random_adapter(model: Any, **overrides: Any) -> Any:
    policy = trainable(model, spec(**overrides))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return policy


def gradients(policy: Any, compute: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    loss = compute()
    loss.backward()
    return loss.detach(), {
        name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.requires_grad
    }


def test_a_row_holds_a_pair_with_positions_that_start_anew_behind_the_prompt() -> None:
    rows = lay_out([pair(3, 2, 3), pair(2, 1, 1)], PAD)
    assert rows.ids_BT.tolist() == [[100, 101, 102, 200, 201, 300, 301, 302], [100, 101, 200, 300, 0, 0, 0, 0]]
    assert rows.positions_BT.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 2, 0, 0, 0, 0]]
    assert rows.target_N.tolist() == [200, 201, 300, 301, 302, 200, 300]
    assert rows.source_N.tolist() == [2, 3, 2, 5, 6, 9, 9]
    assert rows.answer_N.tolist() == [0, 0, 2, 2, 2, 1, 3]


def test_the_rejected_answer_sees_the_prompt_and_itself_only() -> None:
    mask = dense_mask(lay_out([pair(2, 2, 2)], PAD))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_with_the_block_mask_equals_attention_with_the_dense_one() -> None:
    """What a GPU runs, uncompiled on the CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    rows = lay_out([pair(90, 60, 40), pair(5, 100, 30)], PAD, multiple=128)
    assert rows.ids_BT.shape == (2, 256)
    query, key, value = torch.randn(3, 2, 2, 256, 16, generator=torch.Generator().manual_seed(0)).unbind()
    flexible = flex_attention(query, key, value, block_mask=attention_mask(rows, "flex_attention"))
    dense = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask(rows, "sdpa"))
    assert torch.allclose(torch.as_tensor(flexible), dense, atol=1e-5)
    assert block_mask(rows).sparsity() > 0


def test_a_shared_prompt_changes_neither_log_probabilities_nor_gradients(base: Path) -> None:
    model, tokenizer = load_model(base)
    batch = [(pair, LOGPS) for pair in encode(tokenizer)]
    policy = with_random_adapter(model)
    found = {}
    for shared in (False, True):

        def loss(shared: bool = shared) -> Tensor:
            return dpo_loss(policy, batch, spec(), tokenizer.pad_token_id, shared=shared)[0]

        with torch.no_grad():
            logps = torch.stack(pair_logps(policy, [p for p, _ in batch], tokenizer.pad_token_id, shared=shared))
        found[shared] = (logps, *gradients(policy, loss))
    assert torch.allclose(found[True][0], found[False][0], atol=1e-4)
    assert torch.allclose(found[True][1], found[False][1], atol=1e-5)
    for name, gradient in found[False][2].items():
        assert torch.allclose(found[True][2][name], gradient, atol=1e-5 + 1e-4 * gradient.abs().max()), name


def test_models_that_look_at_a_window_get_a_sequence_for_each_answer(base: Path) -> None:
    model, tokenizer = load_model(base)
    assert attends_to_all(model)
    assert can_share_prompt(model, encode(tokenizer, 2), tokenizer.pad_token_id)
    model.config.sliding_window = 8
    assert not attends_to_all(model)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_chunked_head_equals_the_whole_one_in_value_and_gradient(is_frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(16, 50, bias=False).requires_grad_(not is_frozen)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    targets, asked = torch.randint(50, (23,), generator=generator), torch.randn(23, generator=generator)
    found = []
    for compute in (logps_of, lambda *given: head_logps(*given, max_logits=5 * 50)):
        hidden.grad = head.weight.grad = None
        logps = compute(hidden, targets, head)
        (logps * asked).sum().backward()
        found.append((logps.detach(), hidden.grad, head.weight.grad))
    for whole, chunked in zip(*found, strict=True):
        assert (whole is None) == (chunked is None)
        assert whole is None or torch.allclose(whole, chunked, atol=1e-5)


def test_one_operation_layers_equal_pefts_and_are_gone_afterwards(base: Path) -> None:
    model, tokenizer = load_model(base)
    policy = with_random_adapter(model)
    batch = [(pair, LOGPS) for pair in encode(tokenizer)]

    def loss() -> Tensor:
        return dpo_loss(policy, batch, spec(), tokenizer.pad_token_id)[0]

    plain_loss, plain = gradients(policy, loss)
    with fast_lora(policy):
        with merged_lora(policy), torch.no_grad():
            merged_loss = loss()
        assert any("forward" in vars(module) for module in policy.modules() if isinstance(module, lora.Linear))
        fast_loss, fast = gradients(policy, loss)
    assert not any("forward" in vars(module) for module in policy.modules())
    assert torch.allclose(plain_loss, fast_loss, atol=1e-5)
    assert torch.allclose(plain_loss, merged_loss, atol=1e-5)
    for name, gradient in plain.items():
        assert torch.allclose(fast[name], gradient, atol=1e-5 + 1e-4 * gradient.abs().max()), name


@pytest.mark.parametrize("overrides", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}])
def test_what_saves_memory_leaves_the_run_as_it_was(base: Path, tmp_path: Path, overrides: dict[str, Any]) -> None:
    histories = [run(base, tmp_path / name, **more).history for name, more in (("plain", {}), ("frugal", overrides))]
    for plain, frugal in zip(*histories, strict=True):
        assert frugal == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_bf16_follows_fp32_roughly_and_what_is_trained_stays_fp32(base: Path, tmp_path: Path, adapter: str) -> None:
    exact = run(base, tmp_path / "fp32", adapter=adapter)
    rough = run(base, tmp_path / "bf16", adapter=adapter, precision="bf16")
    assert {weight.dtype for weight in rough.model.parameters() if weight.requires_grad} == {torch.float32}
    assert rough.history != exact.history
    assert rough.history[-1]["loss"] == pytest.approx(exact.history[-1]["loss"], rel=0.05)


def run(base: Path, directory: Path, cache: Path | None = None, **overrides: Any) -> Any:
    model, tokenizer = load_model(base)
    directory.mkdir()
    progress = Progress(directory / "progress.json")
    pairs = encode(tokenizer)
    return train_dpo(
        model, pairs, spec(**overrides), tokenizer.pad_token_id, directory / "c", "r-1", progress, cache=cache
    )


def test_the_loss_curve_is_trls_on_the_same_batches(base: Path, tmp_path: Path) -> None:
    from training.trl_dpo import make_trainer

    settings = spec(steps=5, batch_size=8, learning_rate=3e-3)
    ours = run(base, tmp_path / "ours", steps=5, batch_size=8, learning_rate=3e-3).history
    model, tokenizer = load_model(base)
    task = Task(model, tokenizer, [], [], settings, tmp_path, "r-1", Progress(tmp_path / "p.json"))
    trainer = make_trainer(task, encode(tokenizer))
    trainer.train()
    theirs = [log for log in trainer.state.log_history if "rewards/margins" in log]
    assert ours[-1]["margin"] > 0.05, "there must be something to agree on"
    for our, their in zip(ours, theirs, strict=True):
        assert our["loss"] == pytest.approx(their["loss"], abs=1e-4)
        assert our["margin"] == pytest.approx(their["rewards/margins"], abs=1e-4)
        assert our["chosen_logps"] == pytest.approx(their["logps/chosen"], abs=1e-3)


def test_reference_values_are_kept_for_a_base_and_a_pair(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base)
    pairs, pad, progress = encode(tokenizer), tokenizer.pad_token_id, Progress(tmp_path / "p.json")
    cache = tmp_path / "cache"
    first = reference_logps(model, pairs, {0, 1, 2}, pad, progress, cache=cache)
    assert first == reference_logps(model, pairs, {0, 1, 2}, pad, progress)
    model.forward = refuse
    model.model.forward = refuse
    assert reference_logps(model, pairs, {0, 2}, pad, progress, cache=cache) == {0: first[0], 2: first[2]}
    with pytest.raises(AssertionError, match="computed"):
        reference_logps(model, pairs, {3}, pad, progress, cache=cache)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("computed again")


def test_another_base_or_a_damaged_file_gives_no_reference_value(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base)
    pairs, pad, progress = encode(tokenizer), tokenizer.pad_token_id, Progress(tmp_path / "p.json")
    before = reference_logps(model, pairs, {0}, pad, progress, cache=tmp_path)
    (tmp_path / f"{fingerprint(model)}.safetensors").write_bytes(b"torn")
    assert reference_logps(model, pairs, {0}, pad, progress, cache=tmp_path) == before
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    assert reference_logps(model, pairs, {0}, pad, progress, cache=tmp_path) != before
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 <= KEPT_BASES


def test_a_run_with_kept_reference_values_ends_with_the_same_weights(base: Path, tmp_path: Path) -> None:
    cold, warm = (run(base, tmp_path / name, cache=tmp_path / "cache") for name in ("cold", "warm"))
    assert cold.history == warm.history
    for (name, ours), (_, theirs) in zip(cold.model.named_parameters(), warm.model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
