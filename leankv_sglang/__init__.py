"""LeanKV: compressed KV-cache pages beneath SGLang's radix tree.

``python -m leankv_sglang.launch_server`` serves; :func:`leankv_sglang.engine.engine` runs in-process.
"""

from importlib.metadata import version

__version__ = version("leankv-sglang")
