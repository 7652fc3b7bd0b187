"""Kernels in CUDA C++ for NVIDIA GPUs of compute capability 8.0 and up: integer tensor cores over records as they lie.

The source (``csrc/``) is one header a job, compiled for a shape at a time. ``emulated`` runs the same source on a CPU,
with threads as fibers and a check for races, so it is tested without a GPU.
"""
