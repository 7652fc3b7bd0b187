"""Faults planted in the CUDA kernels, and whether they are noticed."""
