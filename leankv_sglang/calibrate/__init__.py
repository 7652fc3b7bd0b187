"""Calibration: thresholds per (layer, KV head) by a rate-distortion search on a text, written as a profile."""

import os

# Spinning OpenMP threads cost ten times beside other processes. Read when torch loads its OpenMP library.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
