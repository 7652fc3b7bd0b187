"""What thresholds really cost and hold, through the real codec and read rule: the same code as evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from leankv_sglang.compression.significance import Significance
from leankv_sglang.compression.thresholds import threshold_table
from leankv_sglang.config import Alphas, LeanKVConfig
from leankv_sglang.offline.compare import compare
from leankv_sglang.offline.packed import PackedModel

SKIP = 512
"""First tokens of a window that are not scored."""


class Measured(NamedTuple):
    """Mean KL in nats of the window that loses most, change of perplexity, and 16-bit bytes over physical bytes at the
    windows' length.

    A mean over windows would hide running text behind passages that come back, of which a good model is sure.
    """

    kl: float
    ppl_rel: float
    ratio: float


@dataclass
class Yardstick:
    """Windows of tokens, all of one length, and the exact cache's outputs on them."""

    model: PackedModel
    windows: list[Tensor]
    config: LeanKVConfig
    page_size: int
    significance: Significance
    _exact: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._exact = [self._outputs(ids, None)[0] for ids in self.windows]

    def measure(self, alphas: Alphas) -> Measured:
        """Run every window with these thresholds."""
        worst = nll = nll_exact = 0.0
        count = held = 0
        for ids, exact in zip(self.windows, self._exact, strict=True):
            ours, nbytes = self._outputs(ids, alphas)
            exact_nll, (loss,) = compare(self.model, exact[SKIP:-1], [ours[SKIP:-1]], ids[SKIP + 1 :])
            worst = max(worst, float(loss.kl.mean()))
            nll += float(loss.nll.sum())
            nll_exact += float(exact_nll.sum())
            count += len(exact_nll)
            held += nbytes
        raw = sum(len(ids) for ids in self.windows) * self.model.shape.token_bytes
        return Measured(worst, math.exp((nll - nll_exact) / count) - 1, raw / held)

    def _outputs(self, ids: Tensor, alphas: Alphas | None) -> tuple[Tensor, int]:
        if alphas is None:
            cache = self.model.cache(None, self.page_size, 1, len(ids))
        else:
            shape = self.model.shape
            table = threshold_table(alphas, shape.layers, shape.kv_heads)
            cache = self.model.cache(self.config, self.page_size, 1, len(ids), table, self.significance)
        state = cache.new(len(ids))
        out = self.model.prefill(cache, [(state, ids.tolist())])[0]
        return out, cache.context_bytes(state)
