"""Shared set-up: sglang must find its CPU shims before any test imports it."""

from leankv_sglang.environment import has_accelerator, prepare_cpu

if not has_accelerator():
    prepare_cpu()
