"""The paper's strategy."""

from __future__ import annotations

from typing import ClassVar

from leankv_sglang.compression.significance.base import Significance


class Attention(Significance):
    """Mean attention a token receives, relative to uniform, the largest over the query group (arXiv 2412.03131, 4.2).

    The paper normalizes over the whole context; here the softmax runs over the page's own keys, so the pages of a
    chunk do not depend on each other and commit in parallel. It also measures better (docs/design.md).
    """

    name: ClassVar[str] = "attention"
    uses_thresholds: ClassVar[bool] = True
    score: ClassVar[str | None] = "attention"
