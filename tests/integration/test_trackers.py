"""The curve in MLflow's and W&B's own stores, on this machine; a run that goes on is one run there."""

import json
import subprocess
from pathlib import Path

import pytest

from hone.errors import ConfigError
from tests.support.events_file import events_of
from training.spec import Job, RunSpec
from training.trackers import check_trackers, parameters, trackers_of

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-trackers" / "bin" / "python"
TWO_STARTS = """
import json, sys
from pathlib import Path
from training.spec import load_job
from training.trackers import check_trackers, trackers_of
job = load_job(Path(sys.argv[1]))
check_trackers(job.spec.report_to)
class Killed(Exception): pass
for steps in ((1, 2, 3), (3, 4)):
    try:
        with trackers_of(job) as (tracker,):
            for step in steps:
                tracker.log(step, {"loss": 1 / step, "margin": float("nan") if step == 1 else 0.5})
            if steps[0] == 1:
                raise Killed
    except Killed:
        pass
"""


def write_job(directory: Path, name: str) -> Job:
    directory.mkdir(parents=True)
    spec = RunSpec.model_validate({"report_to": [name], "lora": {"rank": 4}})
    job = Job(run_id="r-test", spec=spec, base_version="m-base", base_directory=directory, directory=directory)
    (directory / "job.json").write_text(job.model_dump_json())
    return job


def two_starts(job: Job, then: str) -> dict[str, object]:
    words = [str(PYTHON), "-c", TWO_STARTS + then, str(job.directory / "job.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.trackers
def test_mlflow_has_one_run_with_every_step_and_the_specs_keys(tmp_path: Path) -> None:
    then = """
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{job.directory.parent / 'mlflow.db'}")
(run,) = client.search_runs([client.get_experiment_by_name("hone").experiment_id])
steps = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
margins = [m.step for m in client.get_metric_history(run.info.run_id, "margin")]
print(json.dumps([run.info.status, run.data.params["lora.rank"], sorted(set(steps)), sorted(set(margins))]))
"""
    job = write_job(tmp_path / "runs" / "r-test", "mlflow")
    losses = [[step, 1 / step] for step in (1, 2, 3, 4)]
    assert two_starts(job, then) == ["FINISHED", "4", losses, [2, 3, 4]]


@pytest.mark.trackers
def test_wandb_keeps_the_steps_in_files_of_the_run_offline(tmp_path: Path) -> None:
    then = """
import time
from wandb.proto import wandb_internal_pb2
def records(path):
    data, at = path.read_bytes(), 7  # after the file's header: checksum (4 bytes), length (2), kind, content
    while at + 7 <= len(data) and (length := int.from_bytes(data[at + 4 : at + 6], "little")):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        yield record
def both_files():
    return [list(records(path)) for path in sorted(job.directory.glob("wandb/offline-run-*/*.wandb"))]
deadline = time.monotonic() + 20  # W&B's own process may still be writing the last records
while not all(file and file[-1].WhichOneof("record_type") == "exit" for file in both_files()):
    assert time.monotonic() < deadline, "a file without its last record"
    time.sleep(0.1)
steps = {}
for record in sum(both_files(), []):
    if record.WhichOneof("record_type") == "history":
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        steps[items["_step"]] = items["loss"]
print(json.dumps(sorted(steps.items())))
"""
    job = write_job(tmp_path / "r-test", "wandb")
    assert two_starts(job, then) == [[step, pytest.approx(1 / step)] for step in (1, 2, 3, 4)]


def test_tensorboard_shows_both_starts_of_a_run(tmp_path: Path) -> None:
    job = write_job(tmp_path / "r-test", "tensorboard")
    for steps in ((1, 2, 3), (3, 4)):
        with trackers_of(job) as (tracker,):
            for step in steps:
                tracker.log(step, {"loss": 1 / step})
    assert events_of(job.directory / "tensorboard")["train/loss"] == pytest.approx({k: 1 / k for k in (1, 2, 3, 4)})


def test_what_is_not_installed_is_said_with_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensorboard is not installed: install the extra `trackers`"):
        check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"report_to names mlflow.*deploy/trackers.sh"):
        check_trackers(["mlflow"])


def test_a_tracker_is_told_the_base_and_every_key_that_is_set(tmp_path: Path) -> None:
    found = dict(parameters(write_job(tmp_path / "r-test", "mlflow")))
    assert (found["base_version"], found["lora.rank"], found["learning_rate"]) == ("m-base", 4, 5e-4)
    assert "steps" not in found
