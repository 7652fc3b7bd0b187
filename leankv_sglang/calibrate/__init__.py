"""Calibration: thresholds per (layer, KV head) by a rate-distortion search on a text, written as a profile."""
