#!/bin/sh
# Makes .venv-ray: Ray and what it needs, with the rest from .venv. Ray is heavy, so it is outside the lock.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "ray: run make setup first" >&2; exit 1; }
var/uv/bin/uv venv -q --clear --python .venv/bin/python .venv-ray
var/uv/bin/uv pip install -q --python .venv-ray/bin/python "ray[train]==2.60.0"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ours=$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What both have, such as pyarrow, is taken from .venv-ray: a path file comes after the folder it lies in.
echo "$site" > "$ours/hone.pth"
.venv-ray/bin/python -c 'import ray, torch, trl; print("ray", ray.__version__, "torch", torch.__version__)'
