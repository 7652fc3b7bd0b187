#!/bin/sh
# Is the backend cuda right on this machine's GPU, and how fast? See bench/gpu/check.py; --emulated needs no GPU.
cd "$(dirname "$0")/../.." || exit
[ -n "$PYTHON" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
# Compiled kernels: those that --compile made, of this folder alone, so that they can be carried along.
case " $* " in *" --emulated "*) ;; *) export LEANKV_HOME="${LEANKV_HOME:-$PWD/out/leankv}" ;; esac
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT-0}" PYTHONUNBUFFERED=1
exec "$PYTHON" -m bench.gpu.check "$@"
