"""SGLang's own 8-bit cache as a baseline: keys and values in a float8 of scale 1, as ``--kv-cache-dtype`` has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leankv_sglang.offline.caches import State
from leankv_sglang.offline.packed import PackedModel
from leankv_sglang.offline.raw_cache import RawCache
from leankv_sglang.offline.raw_rows import Rule

DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""By their names in SGLang."""


class Fp8Cache(RawCache):
    """The uncompressed cache with numbers rounded as they are stored; out of range they saturate.

    Args:
        model: whose sequences it holds.
        rows: sequences at a time.
        dtype: a float8, of which a number takes one byte.
    """

    def __init__(self, model: PackedModel, rows: int, dtype: torch.dtype) -> None:
        super().__init__(model.shape, rows, model.cache_dtype, model.device)
        self.stored = dtype

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """See :meth:`Cache.attend`. Queries read their own token as it is stored, too."""
        return super().attend(layer, q, self._rounded(k), self._rounded(v), rule)

    def context_bytes(self, state: State) -> int:
        """See :meth:`Cache.context_bytes`."""
        return super().context_bytes(state) // 2

    def _rounded(self, x: Tensor) -> Tensor:
        most: Any = torch.finfo(self.stored).max
        return x.clamp(-most, most).to(self.stored).to(x.dtype)
