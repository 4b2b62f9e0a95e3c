"""Plans: their arithmetic by hand, what they choose, and what they refuse."""

from typing import Any

import pytest

from hone.errors import ConfigError
from hone.plan.decide import Override, Plan, Question, Stage, make_plan
from hone.plan.facts import GB, Hardware, Labels, Lengths
from hone.plan.fit import setup_for
from hone.plan.memory import Memory, Setup, memory_of
from hone.plan.tables import load_tables
from hone.store.label_counts import noise_of

TABLES = load_tables()
SIZES = {"0.5b": 494_032_768, "1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248, "70b": 70_553_706_496}
"""Parameters as the makers count them; the biases of the 0.5b are left out by the planner."""


def hardware(name: str, gpus: int) -> Hardware:
    return Hardware(name=name, device=TABLES.hardware[name], gpus=gpus)


def plan(model: str = "8b", gpu: str = "h100", gpus: int = 1, **labels: Any) -> Plan:
    more = {key: labels.pop(key) for key in ("goal", "override", "max_hours", "max_usd", "lengths") if key in labels}
    question = Question(
        labels=Labels(**labels), shape=TABLES.models[model], hardware=hardware(gpu, gpus), model=model, **more
    )
    return make_plan(question, TABLES)


def only(found: Plan) -> Stage:
    assert len(found.stages) == 1
    return found.stages[0]


def methods(found: Plan) -> list[str]:
    return [stage.method for stage in found.stages]


@pytest.mark.parametrize("model", SIZES)
def test_parameters_are_counted_as_the_makers_do(model: str) -> None:
    shape = TABLES.models[model]
    biases = shape.num_hidden_layers * (shape.query_width + 2 * shape.key_width) if model == "0.5b" else 0
    assert shape.num_parameters == SIZES[model] - biases


def test_full_training_of_8b_takes_16_bytes_a_parameter() -> None:
    memory = memory_of(TABLES.models["8b"], Setup(adapter="full", sequences=1, tokens=8, logit_tokens=1))
    states = memory.weights + memory.gradients + memory.optimiser
    assert states == 16 * 8_030_261_248
    assert memory.adapter == 0


def test_zero2_splits_gradients_and_optimiser_and_fsdp2_the_weights_too() -> None:
    shape = TABLES.models["8b"]

    def states(sharding: Any) -> Memory:
        return memory_of(shape, Setup(adapter="full", sharding=sharding, world=8, tokens=8, logit_tokens=1))

    whole, zero2, fsdp2 = states("ddp"), states("zero2"), states("fsdp2")
    assert zero2.optimiser == whole.optimiser / 8
    assert zero2.weights == whole.weights
    gathered = 2 * (2 * shape.num_linear / 32) + 2 * shape.num_embedding
    assert fsdp2.weights == pytest.approx(whole.weights / 8 + gathered)


def test_an_adapter_of_8b_by_hand() -> None:
    # rank 16 on all seven maps of 32 layers: 16 * (inputs + outputs)
    each = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    memory = memory_of(TABLES.models["8b"], Setup(adapter="lora", rank=16, tokens=8, logit_tokens=1))
    assert memory.adapter == 32 * each * 4
    assert memory.optimiser == 32 * each * 8
    assert memory.weights == 2 * 8_030_261_248


def test_qlora_packs_the_layers_and_not_the_embeddings() -> None:
    shape = TABLES.models["8b"]
    memory = memory_of(shape, Setup(adapter="qlora", rank=16, tokens=8, logit_tokens=1))
    packed, plain = 32 * 218_103_808, 2 * 128_256 * 4096 + 65 * 4096
    assert shape.num_linear == packed
    assert memory.weights == pytest.approx(packed * 0.515875 + 2 * plain)


def test_logits_and_activations_grow_with_the_batch() -> None:
    shape = TABLES.models["1b"]
    small = memory_of(shape, Setup(adapter="lora", rank=8, sequences=2, tokens=512, logit_tokens=100))
    large = memory_of(shape, Setup(adapter="lora", rank=8, sequences=8, tokens=512, logit_tokens=400))
    assert small.logits == 3 * 4 * 100 * 128_256
    assert large.activations == 4 * small.activations
    again = memory_of(
        shape, Setup(adapter="lora", rank=8, sequences=8, tokens=512, logit_tokens=400, checkpointing=True)
    )
    assert again.activations < large.activations / 4


def test_one_small_gpu_gets_qlora_and_one_large_lora_and_eight_all_weights() -> None:
    assert (only(plan(gpu="rtx4090", pairs=5000)).adapter, only(plan(gpu="rtx4090", pairs=5000)).rank) == ("qlora", 16)
    assert only(plan("14b", gpu="rtx4090", pairs=5000)).rank == 8
    assert only(plan(pairs=5000)).adapter == "lora"
    assert only(plan(gpus=8, pairs=5000)).adapter == "full"


def test_what_fits_is_within_the_device_and_the_batch_is_the_advised_one() -> None:
    for gpus, gpu, model in [(1, "h100", "8b"), (8, "h100", "8b"), (64, "h100", "70b"), (1, "rtx4090", "8b")]:
        stage = only(plan(model, gpu, gpus, pairs=9000))
        assert stage.fit
        assert stage.fit.memory.total <= TABLES.hardware[gpu].memory_gb * GB * 0.92
        assert stage.fit.batch in (32, 64)


def test_70b_on_one_small_gpu_is_refused_with_what_would_do() -> None:
    found = plan("70b", "rtx4090", 1, pairs=5000)
    assert not found.ok
    assert only(found).fit is None
    assert "qlora needs 48." in found.refusals[0]
    assert "such GPUs would do with FSDP2" in found.refusals[0]


def test_70b_falls_back_to_an_adapter_where_all_weights_do_not_fit_and_says_so() -> None:
    found = plan("70b", "h100", 8, pairs=9000)
    stage = only(found)
    assert found.ok
    assert (stage.adapter, stage.rank) == ("lora", 16)
    assert stage.fit
    assert stage.fit.setup.sharding == "fsdp2"
    assert "32 such GPUs would do" in found.warnings[0]
    assert {option.sharding for option in stage.options} == {"ddp", "zero2", "fsdp2", "tensor_pipeline"}


def test_a_learning_rate_follows_what_is_really_trained() -> None:
    fallen = plan("70b", "h100", 8, demonstrations=5000).stages[0]
    assert (fallen.adapter, fallen.learning_rate) == ("lora", 2e-4)
    assert plan("8b", "h100", 8, demonstrations=5000).stages[0].learning_rate == 1e-5


def test_edits_make_demonstrations_and_pairs() -> None:
    found = plan(pairs=4000, edits=3000)
    assert methods(found) == ["sft", "dpo"]
    assert [stage.num_labels for stage in found.stages] == [3000, 4000]


def test_lone_thumbs_make_kto_and_too_few_of_one_kind_are_refused() -> None:
    assert methods(plan(thumbs_up=900, thumbs_down=300)) == ["kto"]
    assert plan(thumbs_up=900, thumbs_down=300).ok
    refused = plan(thumbs_up=900, thumbs_down=49)
    assert not refused.ok
    assert "49" in refused.refusals[0]


def test_many_pairs_on_a_cluster_go_the_long_way() -> None:
    assert methods(plan(gpus=8, pairs=50_000, demonstrations=2000)) == ["sft", "reward_model", "ppo"]
    assert methods(plan(gpus=4, pairs=50_000)) == ["reward_model", "rloo"]


def test_measured_noise_takes_the_robust_loss_and_too_much_is_refused() -> None:
    stage = only(plan(pairs=5000, noise=0.18))
    assert (stage.loss, stage.label_smoothing) == ("robust", 0.18)
    assert only(plan(pairs=5000)).loss == "sigmoid"
    refused = plan(pairs=5000, noise=0.31)
    assert not refused.ok
    assert "31%" in refused.refusals[0]


def test_domain_knowledge_goes_to_the_mlp_and_structure_to_all_weights() -> None:
    domain = only(plan(pairs=5000, goal="domain"))
    assert domain.targets == ("gate_proj", "up_proj", "down_proj")
    assert domain.rank == 64
    structure = only(plan("0.5b", demonstrations=5000, goal="structure"))
    assert (structure.method, structure.adapter) == ("sft", "full")


def test_the_demo_is_marked_as_below_the_minimum() -> None:
    found = plan("demo", "cpu", 0, pairs=250)
    assert found.ok
    assert only(found).below_minimum
    assert "below the advised minimum of 3000" in found.warnings[0]


def test_an_override_needs_a_reason_which_the_plan_keeps() -> None:
    with pytest.raises(ConfigError, match="needs its reason"):
        plan(pairs=5000, override=Override(rank=4))
    stage = only(plan(pairs=5000, override=Override(rank=4, targets=("q_proj",), reason="a small change")))
    assert (stage.rank, stage.targets) == (4, ("q_proj",))
    assert any("a small change (the tables said lora, rank 16)" in text for _, text in stage.why)


def test_an_override_is_not_softened() -> None:
    found = plan(pairs=5000, override=Override(adapter="full", reason="I want it"))
    assert not found.ok
    assert "full needs" in found.refusals[0]


def test_a_plan_beyond_the_budget_is_refused() -> None:
    assert plan(pairs=40_000, max_hours=10, max_usd=50).ok
    found = plan(pairs=40_000, max_hours=0.5, max_usd=1)
    assert len(found.refusals) == 2
    assert "the budget is 0.5 h" in found.refusals[0]


def test_no_label_is_no_plan() -> None:
    found = plan()
    assert not found.ok
    assert "no label to train on" in found.refusals[0]


def test_time_grows_with_labels_and_shrinks_with_devices() -> None:
    small, large, wide = (only(plan("8b", "h100", n, pairs=p)) for n, p in ((2, 4000), (2, 8000), (4, 8000)))
    assert small.cost
    assert large.cost
    assert wide.cost
    assert large.cost.seconds == pytest.approx(2 * small.cost.seconds)
    assert wide.cost.seconds == pytest.approx(large.cost.seconds / 2)
    assert wide.cost.usd == pytest.approx(large.cost.usd)


def test_time_of_dpo_on_8b_by_hand() -> None:
    stage = only(plan(pairs=1000, lengths=Lengths(prompt=150, answer=250, longest=1024)))
    assert stage.cost
    forward = 2 * (32 * 218_103_808 + 128_256 * 4096) + 2 * 32 * 4096 * 400
    # forward, backward through a frozen base, checkpointing, and the reference once
    seconds = 1000 * 2 * 400 * 4 * forward / (989e12 * 0.4)
    assert stage.cost.seconds == pytest.approx(seconds)


def test_noise_follows_from_how_often_two_people_agree() -> None:
    # 18 % flipped: they agree with probability .18² + .82² = .7048, as measured on real ratings
    assert noise_of(7048, 10_000) == pytest.approx(0.18)
    assert noise_of(100, 100) == 0
    assert noise_of(40, 100) == 0.5
    assert noise_of(40, 50) is None


def test_4_bit_weights_are_not_planned_in_parts_since_the_trainer_does_not_split_them() -> None:
    found = plan("70b", "rtx4090", 8, pairs=5000, override=Override(adapter="qlora", rank=8, reason="the test's"))
    assert not found.ok
    assert "such GPUs would do with FSDP2 and LoRA" in found.refusals[0]
    assert {option.sharding for option in only(found).options} == {"ddp"}


def test_labels_on_others_answers_are_a_warning() -> None:
    assert any("40 of 100 labels are off-policy" in text for text in plan(pairs=100, off_policy=40).warnings)
    assert not any("off-policy" in text for text in plan(pairs=100).warnings)


@pytest.mark.parametrize(("method", "gpu", "copies"), [("sft", "cpu", 9), ("dpo", "cpu", 3), ("sft", "h100", 3)])
def test_trl_on_a_cpu_is_planned_with_the_logits_that_it_was_measured_to_make(
    method: str, gpu: str, copies: int
) -> None:
    device = hardware(gpu, 0 if gpu == "cpu" else 1)
    assert setup_for(method, "lora", 16, (), device).logit_copies == copies
