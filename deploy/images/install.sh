#!/bin/sh
# Installs the locked packages of the named extras into $UV_PROJECT_ENVIRONMENT; the code itself comes by PYTHONPATH.
# With UV_FIND_LINKS, torch comes from there instead of the lock: a CPU wheel, without the CUDA packages.
set -eu
torch=$(sed -n 's/^ *"torch==\([0-9.]*\)",.*/\1/p' pyproject.toml)
options=
for extra in "$@"; do options="$options --extra $extra"; done
links=${UV_FIND_LINKS:-}
unset UV_FIND_LINKS
beside=
if [ -n "$links" ]; then
    beside=$(sed -n 's/^name = "\(torch\|triton\|nvidia-[a-z0-9-]*\|cuda-[a-z]*\)"$/--no-install-package \1/p' uv.lock | sort -u)
fi
# shellcheck disable=SC2086  # one word for each option is meant
uv sync -q --frozen --no-install-project --compile-bytecode $options $beside
case " $* " in
*" training "*) [ -z "$links" ] || uv pip install -q --no-deps --no-index --find-links "$links" "torch==$torch" ;;
esac
