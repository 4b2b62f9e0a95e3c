#!/bin/sh
# Makes .venv-seldon (seldon-core 1.17.1, for Seldon v1) and .venv-mlserver (MLServer 1.7, for Seldon v2), once; again
# only when their requirements change. They cannot share an environment with hone or each other: docs/decisions.
set -eu
cd "$(dirname "$0")/../.."

uv=$(command -v uv || echo "$PWD/var/uv/bin/uv")
export UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=300

make_environment() {
    state=$(cksum < "deploy/seldon/requirements-$2.txt")
    [ -f "$1/.hone-setup" ] && [ "$(cat "$1/.hone-setup")" = "$state" ] && return
    echo "  $1: $(grep -c == "deploy/seldon/requirements-$2.txt") packages"
    # The pins of seldon-core have wheels for Python 3.11 and older.
    python=$(command -v python3.11 || echo .venv/bin/python)
    "$uv" venv -q --clear --python "$python" "$1"
    "$uv" pip sync -q --python "$1/bin/python" "deploy/seldon/requirements-$2.txt"
    echo "$state" > "$1/.hone-setup"
}

make_environment .venv-seldon v1
make_environment .venv-mlserver v2
