"""The kernels' benchmark and its parts."""
