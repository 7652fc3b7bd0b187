"""Models of which some layers keep something else than keys and values of all tokens: windows, recurrent states.

What grows with a context is compressed and lives in our pages; what does not is left to SGLang's own pools, raw. For
windows one id names both: SGLang's row holds slots of the full layers, and a table leads from those to window slots.
"""

from __future__ import annotations

from typing import Any


def compressed_pool(pool: Any) -> Any:
    """The pool of compressed pages in what SGLang takes for its KV pool, where it holds other pools too."""
    return getattr(pool, "full_kv_pool", pool)
