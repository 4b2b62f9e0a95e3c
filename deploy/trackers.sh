#!/bin/sh
# Makes .venv-trackers: the clients of MLflow and Weights & Biases, with the rest from .venv. They are heavy, and MLflow's
# bounds would hold back packages of Airflow, so they are outside the lock. Then: HONE_TRAINING_PYTHON=.venv-trackers/bin/python
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "trackers: run make setup first" >&2; exit 1; }
uv=$(command -v uv || echo var/uv/bin/uv)
"$uv" venv -q --clear --python .venv/bin/python .venv-trackers
"$uv" pip install -q --python .venv-trackers/bin/python "mlflow-skinny==3.17.2" "wandb==0.31.0"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ours=$(.venv-trackers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What both have is taken from .venv-trackers: a path file comes after the folder it lies in.
echo "$site" > "$ours/hone.pth"
.venv-trackers/bin/python -c 'import mlflow, wandb; print("mlflow", mlflow.__version__, "wandb", wandb.__version__)'
