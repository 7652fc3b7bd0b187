"""LeanKV: compressed KV-cache pages beneath SGLang's radix tree.

``python -m leankv_sglang.launch_server`` serves; :func:`leankv_sglang.engine.engine` runs in-process.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("leankv-sglang")
except PackageNotFoundError:
    _missing = (
        f"leankv-sglang is not installed for {sys.executable}; run `make setup` once, then "
        "`source .venv/bin/activate` in every new shell."
    )
    # Python's own mark of ``python -m``, which has no use for a traceback.
    if sys.argv[:1] == ["-m"]:
        sys.exit(_missing)
    raise ImportError(_missing) from None
