"""The configuration file that `accelerate launch` reads: data parallel, FSDP2, or DeepSpeed ZeRO-2 and -3. Pure."""

from typing import Any

from training.launch.table import Launch

PORT = 29511


def accelerate_config(launch: Launch, *, bf16: bool, has_gpu: bool) -> dict[str, Any]:
    """Return the file's content; keys and values as accelerate 1.15 names them."""
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": distributed_type(launch, has_gpu),
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16" if bf16 else "no",
        "num_machines": launch.machines,
        "num_processes": launch.world,
        "rdzv_backend": "static" if launch.machines == 1 else "c10d",
        "same_network": True,
        "use_cpu": not has_gpu,
    }
    if launch.sharding == "fsdp2":
        values["fsdp_config"] = fsdp2()
    if launch.sharding in ("zero2", "zero3"):
        values["deepspeed_config"] = deepspeed(3 if launch.sharding == "zero3" else 2)
    return values


def distributed_type(launch: Launch, has_gpu: bool) -> str:
    """Return accelerate's name of the way to spread."""
    if launch.sharding == "fsdp2":
        return "FSDP"
    if launch.sharding in ("zero2", "zero3"):
        return "DEEPSPEED"
    if launch.world == 1:
        return "NO"
    return "MULTI_GPU" if has_gpu else "MULTI_CPU"


def fsdp2() -> dict[str, Any]:
    """Return FSDP2 by decoder layer; the whole state is gathered for checkpoints that any number of devices reads."""
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    }


def deepspeed(stage: int) -> dict[str, Any]:
    """Return ZeRO of a stage, without offloading."""
    return {
        "deepspeed_multinode_launcher": "standard",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": stage == 3,
        "zero_stage": stage,
    }
