#!/bin/sh
# Does the server work on this machine's GPU, and how fast beside stock SGLang? See bench/gpu/server/; --pack [FOLDER]
# makes what a machine without packages needs, --cpu tries the same on a CPU.
cd "$(dirname "$0")/../.." || exit
[ -n "$PYTHON" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
# Where check.sh --compile puts kernels; models that the pack brings go there too.
! command -v nvidia-smi >/dev/null || export LEANKV_HOME="${LEANKV_HOME:-$PWD/out/leankv}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT-0}" PYTHONUNBUFFERED=1
exec "$PYTHON" -m bench.gpu.server "$@"
