"""What a token costs in a long-running server, whose pages are trimmed but for the boundaries that are kept."""

from __future__ import annotations

from leankv_kernels import RecordLayout
from leankv_sglang.compression.profile_file import CALIBRATED_TOKENS
from leankv_sglang.kvcache.sizing import model_dtype_bytes_per_token, open_page_bytes, page_bytes
from leankv_sglang.kvcache.tree.trim import keep_every


def lasting_cost(far: float, near: float, near_pages: int) -> float:
    """What a long-held page costs, of its price trimmed and whole."""
    kept = min(near_pages / keep_every(near_pages), 1.0)
    return (1 - kept) * far + kept * near


def calibrated_cost(
    ratio: float, layout: RecordLayout, num_layers: int, num_query_heads: int, near_pages: int
) -> float:
    """Units a long-held token costs under a profile's point.

    Args:
        ratio: what 16 bits take over what the point took of contexts of ``CALIBRATED_TOKENS``, open page included,
            when it was measured (``measured_ratios``).
        layout: of the records.
        num_layers, num_query_heads: of the model.
        near_pages: of the profile's configuration.
    """
    whole = page_bytes(layout, num_layers) / layout.page_size
    own_page = open_page_bytes(layout, num_layers, num_query_heads) / CALIBRATED_TOKENS
    raw = model_dtype_bytes_per_token(layout, num_layers)
    return lasting_cost((raw / ratio - own_page) / whole, 1.0, near_pages)
