"""What each launcher would start: pure, and checked against what the tools read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from hone.errors import ConfigError
from training import distributed
from training.__main__ import prepare_imports
from training.distributed import device
from training.launch.accelerate_config import accelerate_config
from training.launch.container import entry_command
from training.launch.render import kubernetes_job, slurm_script, train_job
from training.launch.start import plan_start
from training.launch.table import Launch
from training.spec import Job, RunSpec


def job(launcher: str = "local", **launch: Any) -> Job:
    spec = RunSpec.model_validate({"method": "dpo", "engine": "trl", "launcher": launcher, "launch": launch})
    return Job(run_id="r-1", spec=spec, base_version="m", base_directory=Path("/base"), directory=Path("/runs/r-1"))


def test_local_is_one_process_of_the_module() -> None:
    start = plan_start(job(), has_gpu=False, python="python")
    assert start.command == ["python", "-m", "training", "run", "/runs/r-1/job.json"]
    assert not start.files


@pytest.mark.parametrize(("sharding", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED")])
def test_accelerate_reads_the_configuration(sharding: str, kind: str, tmp_path: Path) -> None:
    launch = Launch.model_validate({"processes": 8, "machines": 2, "sharding": sharding})
    values = accelerate_config(launch, bf16=True, has_gpu=True)
    path = tmp_path / "accelerate.json"
    path.write_text(json.dumps(values))
    read = load_config_from_file(str(path))
    assert isinstance(read, ClusterConfig)
    assert (read.distributed_type.value, read.num_processes, read.num_machines) == (kind, 16, 2)
    assert read.mixed_precision == "bf16"
    if sharding == "fsdp2":
        assert read.fsdp_config["fsdp_version"] == 2


def test_zero_stages_differ() -> None:
    stages = [
        accelerate_config(Launch(sharding=name), bf16=False, has_gpu=True)["deepspeed_config"]["zero_stage"]
        for name in ("zero2", "zero3")
    ]
    assert stages == [2, 3]


def test_a_kubernetes_job_has_a_pod_for_each_machine_that_finds_the_first() -> None:
    found = kubernetes_job(job("kubernetes", processes=8, machines=4, max_restarts=5))
    spec = found["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (4, 4, 5)
    template = spec["template"]["spec"]
    (container,) = template["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "--nnodes 4" in container["command"][2]
    assert "--node-rank $JOB_COMPLETION_INDEX --master-addr r-1-0.r-1" in container["command"][2]
    assert template["subdomain"] == "r-1"
    assert container["volumeMounts"][0]["mountPath"] == "/runs"


def test_a_train_job_names_the_runtime_and_leaves_the_places_to_it() -> None:
    found = train_job(job("trainjob", processes=8, machines=2))
    assert found["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert found["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert found["spec"]["trainer"]["numNodes"] == 2
    assert "--nnodes" not in found["spec"]["trainer"]["command"]


def test_a_slurm_script_is_a_shell_script_with_one_task_a_machine(tmp_path: Path) -> None:
    text = slurm_script(job("slurm", processes=4, machines=2, partition="gpu", time_limit_h=1.5))
    (tmp_path / "job.sh").write_text(text)
    assert subprocess.run(["sh", "-n", tmp_path / "job.sh"]).returncode == 0
    for line in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "partition=gpu", "time=01:30:00", "requeue"):
        assert f"#SBATCH --{line}" in text
    assert "--nproc-per-node 4 --node-rank $SLURM_NODEID" in text


@pytest.mark.parametrize("launcher", ["kubernetes", "trainjob", "slurm"])
def test_a_clusters_command_is_left_to_a_person_and_its_file_can_be_read(launcher: str) -> None:
    start = plan_start(job(launcher, processes=8), has_gpu=True)
    assert not start.is_ours
    ((path, text),) = start.files.items()
    assert str(path) == start.command[-1]
    if launcher != "slurm":
        assert yaml.safe_load(text)["metadata"]["name"] == "r-1"


def test_sagemaker_and_vertex_start_the_same_module() -> None:
    sagemaker = {"SM_HOSTS": '["algo-2", "algo-1"]', "SM_CURRENT_HOST": "algo-2", "SM_NUM_GPUS": "8"}
    command = entry_command("job.json", sagemaker, 0)
    assert " ".join(command[:9]) == "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr algo-1"
    cluster = {"workerpool0": ["a:2222"], "workerpool1": ["b:2222", "c:2222"]}
    vertex = {"CLUSTER_SPEC": json.dumps({"cluster": cluster, "task": {"type": "workerpool1", "index": 1}})}
    assert entry_command("job.json", vertex, 4)[1:9] == [
        "--nnodes", "3", "--node-rank", "2", "--nproc-per-node", "4", "--master-addr", "a",
    ]  # fmt: skip
    assert entry_command("job.json", {}, 0)[2:7:2] == ["1", "0", "1"]
    with pytest.raises(ConfigError, match="make no sense"):
        entry_command("job.json", {"SM_HOSTS": '["x"]', "SM_CURRENT_HOST": "y"}, 1)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="starts one process"):
        plan_start(job("local", processes=2), has_gpu=False)
    for words, launch, change in (
        ("native ppo trains in one process", {}, {"engine": "native", "method": "ppo"}),
        ('fsdp2 needs engine = "trl"', {"sharding": "fsdp2"}, {"engine": "native", "method": "dpo"}),
    ):
        native = job("accelerate", processes=2, **launch)
        native = native.model_copy(update={"spec": native.spec.model_copy(update=change)})
        with pytest.raises(ConfigError, match=words):
            plan_start(native, has_gpu=True)


def test_each_process_takes_its_share_and_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.share_of([5, 6]) == [5, 6]
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for number in "012":
        monkeypatch.setenv("RANK", number)
        shares.append(distributed.share_of(range(4)))
    assert [list(share) for share in shares] == [[0, 3], [1], [2]]


def test_gradients_are_added_up_in_groups_of_a_type_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "MAX_SUMMED", 10)
    sizes = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (20, torch.float32), (2, torch.float64)]
    found = distributed.buckets([torch.zeros(size, dtype=dtype) for size, dtype in sizes])
    assert [[tensor.numel() for tensor in bucket] for bucket in found] == [[4, 6], [1], [20], [2]]


def test_a_batch_is_that_of_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.rows_of_each(32, None) == (32, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.rows_of_each(32, None) == (8, 1)
    assert distributed.rows_of_each(32, 2) == (2, 4)
    for batch, micro in ((30, None), (2, None), (32, 3)):
        with pytest.raises(ConfigError, match="cannot be divided"):
            distributed.rows_of_each(batch, micro)


def test_a_process_computes_on_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device() == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device() == "cuda:3"


@pytest.mark.parametrize(("visible", "processes", "left"), [("2,3", 1, "2"), (None, 1, "0"), ("2,3", 2, "2,3")])
def test_a_single_process_sees_a_single_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, processes: int, left: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    prepare_imports(RunSpec.model_validate({"engine": "trl", "launch": {"processes": processes}}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
