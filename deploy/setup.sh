#!/bin/sh
# Makes .venv from the lock, once; again only when the lock, the project file or this script changes.
# torch is installed beside the lock, so that a CPU wheel offered by pip's configured find-links can serve.
set -eu
cd "$(dirname "$0")/.."

torch=$(sed -n 's/^ *"torch==\([0-9.]*\)",.*/\1/p' pyproject.toml)
stamp=.venv/.hone-setup
state=$(cat uv.lock pyproject.toml deploy/setup.sh | cksum)

say() { printf '  %s\n' "$*"; }

find_python() {
    for name in ${HONE_PYTHON:-} python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "setup: no Python 3.11 to 3.13 with venv on PATH: install one (Debian: apt-get install python3 python3-venv)" >&2
    exit 1
}

# Where pip looks for wheels beside its index; uv reads none of pip's configuration.
find_links() {
    "$1" -m pip config list 2>/dev/null | sed -n "s/^.*find-links='\(.*\)'$/\1/p" | sed 's/\\n/ /g' | tr ',' ' '
}

has_torch() {
    .venv/bin/python -c "import torch; assert torch.__version__.split('+')[0] == '$torch'" 2>/dev/null
}

install_torch() {
    links=${UV_FIND_LINKS:-$(find_links "$python" | tr -s ' ' ',')}
    if [ -n "$links" ] && UV_FIND_LINKS=$links "$uv" pip install -q --no-deps --no-index "torch==$torch" 2>/dev/null && has_torch; then
        say "torch $torch: the wheel that pip's find-links offers"
        return
    fi
    if [ "$(uname -s)" = Linux ]; then
        say "torch $torch: no CPU wheel on offer, so the registry's CUDA build (about 2.6 GB to download, 6 GB on disk, once)"
    fi
    "$uv" sync -q --frozen --inexact --all-extras
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
    exit 0
fi

started=$(date +%s)
echo "Setting up .venv (once; about a minute, longer where torch must be downloaded)"
python=$(find_python)
if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    say "uv: the installer"
    [ -x var/uv/bin/uv ] || { "$python" -m venv var/uv && var/uv/bin/pip install -q --disable-pip-version-check uv; }
    uv=$PWD/var/uv/bin/uv
fi
# Compiled once here, not in each of the programs that start.
export UV_COMPILE_BYTECODE=1 UV_PYTHON="$python" UV_HTTP_TIMEOUT=300
export VIRTUAL_ENV="$PWD/.venv"
[ -x .venv/bin/python ] || "$uv" venv -q --python "$python" .venv
unset UV_PYTHON

beside=$(sed -n 's/^name = "\(torch\|triton\|nvidia-[a-z0-9-]*\|cuda-[a-z]*\)"$/--no-install-package \1/p' uv.lock | sort -u)
say "packages: $(grep -c '^name = ' uv.lock) locked"
# shellcheck disable=SC2086  # one word for each option is meant
"$uv" sync -q --frozen --inexact --all-extras $beside
has_torch || install_torch

if command -v mvn >/dev/null 2>&1 && command -v java >/dev/null 2>&1; then
    say "Kafka: the broker's jars"
    .venv/bin/python -c "import pathlib, hone.local.kafka as kafka; kafka.fetch_jars(pathlib.Path('var/kafka/libs'))" ||
        say "Kafka's jars could not be had: the in-process broker will serve"
else
    say "Kafka: Java 17 and mvn are not both here, so the in-process broker will serve"
fi
echo "$state" > "$stamp"
echo "Set up in $(($(date +%s) - started)) s"
