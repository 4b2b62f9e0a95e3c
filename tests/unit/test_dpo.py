"""The native engine against hand calculation, the model's own forward pass, and TRL."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hone.errors import ConfigError, ProgramFailed
from tests.support.training import QUICK, make_task, row
from training.adapter import trainable
from training.dpo import Run, dpo_loss, learning_rate, num_tokens, plan_batches, train_dpo
from training.losses import LOSSES
from training.pairs import TokenPair, encode_pairs
from training.policy import answer_logps, check_parity, load_model
from training.progress import Progress
from training.reference import reference_logps
from training.spec import RunSpec, merged


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base


@pytest.fixture
def loaded(base: Path) -> tuple[Any, Any]:
    return load_model(base)


def spec(**overrides: Any) -> RunSpec:
    return RunSpec.model_validate(merged(QUICK, overrides))


def encode(tokenizer: Any, number: int = 16, **fields: Any) -> list[TokenPair]:
    return encode_pairs([row(k, **fields) for k in range(number)], tokenizer, 256)[0]


def test_log_probabilities_are_those_of_the_models_own_forward_pass(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pairs = encode(tokenizer, 6)
    ours = answer_logps(model, [(pair.prompt, pair.chosen) for pair in pairs], tokenizer.pad_token_id)
    for pair, logp in zip(pairs, ours, strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.chosen]])
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        slow = sum(logps[t - 1, ids[0, t]] for t in range(len(pair.prompt), ids.shape[1]))
        assert torch.allclose(logp, torch.as_tensor(slow), atol=1e-4)


def test_an_architecture_that_changes_its_logits_is_refused(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pair = encode(tokenizer, 1)[0]
    check_parity(model, (pair.prompt, pair.chosen), tokenizer.pad_token_id)
    forward = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits * 10)
        return output

    model.forward = capped
    with pytest.raises(ConfigError, match='engine = "trl"'):
        check_parity(model, (pair.prompt, pair.chosen), tokenizer.pad_token_id)


def test_the_loss_is_the_papers_with_weights_and_the_sft_term(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pad = tokenizer.pad_token_id
    pairs = encode(tokenizer, 2)
    pairs = [
        TokenPair(p.prompt, p.chosen, p.rejected, weight, p.row) for p, weight in zip(pairs, (1.0, 0.25), strict=True)
    ]
    chosen = answer_logps(model, [(p.prompt, p.chosen) for p in pairs], pad).tolist()
    rejected = answer_logps(model, [(p.prompt, p.rejected) for p in pairs], pad).tolist()
    reference = [(-20.0, -22.0), (-25.0, -21.0)]
    expected = 0.0
    for k, weight in enumerate((1.0, 0.25)):
        margin = 0.1 * ((chosen[k] - reference[k][0]) - (rejected[k] - reference[k][1]))
        expected += weight * math.log1p(math.exp(-margin)) / 2
    num_tokens = len(pairs[0].chosen) + len(pairs[1].chosen)
    expected += 0.3 * -(chosen[0] + 0.25 * chosen[1]) / num_tokens
    loss, _ = dpo_loss(model, list(zip(pairs, reference, strict=True)), spec(), pad)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_log_probabilities_and_loss_agree_with_trl(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from training.trl_dpo import make_trainer

    model, tokenizer = loaded
    pairs = encode(tokenizer, 4)
    settings = spec(batch_size=4)
    trainer = make_trainer(make_task((model, tokenizer), tmp_path, [], batch_size=4), pairs)
    policy = trainer.model
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    with policy.disable_adapter():
        reference = reference_logps(policy, pairs, set(range(4)), tokenizer.pad_token_id, Progress(tmp_path / "p.json"))
    ours, figures = dpo_loss(policy, [(pairs[k], reference[k]) for k in range(4)], settings, tokenizer.pad_token_id)
    inputs = trainer.data_collator([trainer.train_dataset[k] for k in range(4)])
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert figures["preference_loss"] != pytest.approx(math.log(2), abs=1e-3), "the adapter must do something"
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    assert figures["chosen_logps"] == pytest.approx(trainer._metrics["train"]["logps/chosen"][-1], abs=1e-4)
    assert figures["margin"] == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], abs=1e-4)


def test_every_loss_is_trls_of_that_name(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from training.trl_dpo import make_trainer

    model, tokenizer = loaded
    pairs = encode(tokenizer, 4)
    trainer = make_trainer(make_task((model, tokenizer), tmp_path, [], engine="trl", batch_size=4), pairs)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    with trainer.model.disable_adapter():
        reference = reference_logps(
            trainer.model, pairs, set(range(4)), tokenizer.pad_token_id, Progress(tmp_path / "p.json")
        )
    inputs = trainer.data_collator([trainer.train_dataset[k] for k in range(4)])
    seen = set()
    for loss in LOSSES:
        smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
        settings = spec(batch_size=4, sft_weight=0, preference={"loss": loss, "label_smoothing": smoothing})
        trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [loss], [1.0], smoothing
        theirs = trainer.compute_loss(trainer.model, dict(inputs)).item()
        compared = [(pairs[k], reference[k]) for k in range(4)]
        ours, _ = dpo_loss(trainer.model, compared, settings, tokenizer.pad_token_id)
        assert ours.item() == pytest.approx(theirs, abs=1e-4, rel=1e-4), loss
        seen.add(round(theirs, 5))
    assert len(seen) == len(LOSSES), "no two are the same"


def test_the_trl_engine_runs_the_same_spec_and_refuses_weights(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from training.trl_dpo import train as train_with_trl

    rows = [row(k) for k in range(16)]
    result = train_with_trl(make_task(loaded, tmp_path, rows, engine="trl", steps=3))
    assert len(result.history) == 3
    assert result.history[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert result.history[0]["reference_chosen_logps"] == pytest.approx(result.history[0]["chosen_logps"], abs=1e-3)
    with pytest.raises(ConfigError, match='engine = "native"'):
        train_with_trl(make_task(loaded, tmp_path, [row(k, weight=0.5) for k in range(16)], engine="trl"))


def train(loaded: tuple[Any, Any], directory: Path, settings: RunSpec, **fields: Any) -> Any:
    model, tokenizer = loaded
    pairs = encode(tokenizer, **fields)
    directory.mkdir(exist_ok=True)
    progress = Progress(directory / "progress.json")
    return train_dpo(model, pairs, settings, tokenizer.pad_token_id, directory / "checkpoints", "r-1", progress)


def test_the_first_loss_is_ln_2_and_training_widens_the_margin(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    result = train(loaded, tmp_path, spec(steps=24, learning_rate=1e-2))
    assert result.history[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert result.history[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert result.history[-1]["margin"] > 0.1
    assert result.history[-1]["preference_loss"] < 0.65


def test_a_reference_that_is_not_the_policy_is_noticed_at_the_first_step(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    """So it would be for an adapter that nobody merged."""
    model, tokenizer = loaded
    run = Run(trainable(model, spec()), spec(), "r-1", tmp_path)
    with pytest.raises(ConfigError, match="ln 2"):
        run.train_step([(pair, (-50.0, -10.0)) for pair in encode(tokenizer, 2)], 10, tokenizer.pad_token_id)


def test_a_loss_that_is_no_number_ends_the_run(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="lower learning_rate"):
        train(loaded, tmp_path, spec(steps=20, learning_rate=1e30, max_grad_norm=1e30))


def test_a_stop_rule_ends_training_or_is_only_recorded(base: Path, tmp_path: Path) -> None:
    rules = {"steps": 12, "learning_rate": 5e-2, "sft_weight": 0, "stop": {"window": 2, "max_chosen_drop": 1e-6}}
    stopped = train(load_model(base), tmp_path / "stop", spec(**rules))
    recorded = train(load_model(base), tmp_path / "record", spec(**rules, stop_rules="record"))
    assert stopped.fired == recorded.fired
    assert len(stopped.history) == stopped.fired["chosen_drop"] < len(recorded.history) == 12


def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    whole = train(load_model(base), tmp_path / "whole", spec(steps=6))
    train(load_model(base), tmp_path / "parts", spec(steps=6))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000006")
    resumed = train(load_model(base), tmp_path / "parts", spec(steps=6))
    assert resumed.history == whole.history
    for (name, ours), (_, theirs) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_every_pair_is_seen_once_an_epoch_in_batches_of_like_length() -> None:
    lengths = [k * 7 % 50 for k in range(100)]
    plan = plan_batches(lengths, spec(steps=None, epochs=2, batch_size=10))
    assert len(plan) == 20
    for epoch in (plan[:10], plan[10:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(100))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in plan]
    assert sum(spread) / len(spread) < 12
    assert plan == plan_batches(lengths, spec(steps=None, epochs=2, batch_size=10))
    assert plan[:10] != plan[10:]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(k, 10, spec(learning_rate=1.0, warmup_steps=2)) for k in range(10)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[2] == max(rates)
    assert rates[9] == pytest.approx(0.1)


def test_an_answer_without_a_rival_is_imitated_and_preferred_to_nothing(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pad = tokenizer.pad_token_id
    lone = {"prompt": row(3)["prompt"], "completion": row(3)["chosen"]}
    (pair, alone), dropped = encode_pairs([row(0), lone], tokenizer, 256)
    assert (alone.rejected, any(dropped.values())) == ((), False)
    reference = [(-20.0, -22.0), (-25.0, 0.0)]
    batch = list(zip((pair, alone), reference, strict=True))
    for shared in (False, True):
        loss, figures = dpo_loss(model, batch, spec(), pad, shared=shared)
        chosen = answer_logps(model, [(p.prompt, p.chosen) for p in (pair, alone)], pad)
        one, of_pair = dpo_loss(model, batch[:1], spec(sft_weight=0), pad, shared=shared)
        tokens = len(pair.chosen) + len(alone.chosen)
        assert loss.item() == pytest.approx(one.item() / 2 - 0.3 * chosen.sum().item() / tokens, rel=1e-4)
        assert figures["margin"] == pytest.approx(of_pair["margin"], rel=1e-4), "figures are of pairs alone"
        parts = [dpo_loss(model, [part], spec(), pad, whole=batch, shared=shared) for part in batch]
        assert sum(part.item() for part, _ in parts) == pytest.approx(loss.item(), rel=1e-5)
        assert dpo_loss(model, batch[1:], spec(preference={"loss": "ipo"}), pad, shared=shared)[1].keys() == {"loss"}


def test_a_shared_prompt_goes_through_the_model_once() -> None:
    pair = TokenPair((1, 2, 3), (4, 5), (6,), 1.0, {})
    imitated = TokenPair((1, 2, 3), (4, 5), (), 1.0, {})
    batch = [(pair, (0.0, 0.0)), (imitated, (0.0, 0.0))]
    assert num_tokens(batch, shared=True) == (3 + 3) + (3 + 2)
    assert num_tokens(batch, shared=False) == (6 + 3) + (3 + 2)
