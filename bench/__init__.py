"""Benches: each is run as ``python -m bench.NAME``, prints a table and can write JSON and plots."""

import os

# Spinning OpenMP threads cost ten times beside other processes. Read when torch loads its OpenMP library.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
