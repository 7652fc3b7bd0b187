"""The pool's figures, for ``/server_info`` and Prometheus alike: one place computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from leankv_kernels.store import Usage
from leankv_sglang.kvcache.pool import LeanKVPool, current_pool
from leankv_sglang.kvcache.sizing import PAGE_TABLE_ENTRY
from leankv_sglang.offload.figures import offload_figures


def pool_figures(pool: LeanKVPool, usage: Usage | None = None) -> dict[str, Any]:
    """Physical bytes, tokens and ratio of a pool; asks no device: ``usage`` is by default what was last told of it.

    ``bytes`` are in use by committed pages; their parts add up to ``bytes_total``, which also counts the pages' table
    entries. ``ratio`` is what the same tokens would take in the model's dtype over ``bytes_total``;
    ``ratio_with_open_pages`` adds the raw open pages of all request rows to the latter. ``bytes_once_trimmed`` and
    ``ratio_once_trimmed`` are without near parts, which go first when memory is short. ``offload`` is there where pages
    are kept beyond the device.
    """
    usage = usage or pool.usage()
    trimmed = pool.bytes_of_pages(np.flatnonzero(pool.ledger.price), trimmed=True)
    figures = usage_figures(pool, usage)
    raw, total = figures["bytes_raw"], figures["bytes_total"]
    return {
        **figures,
        "bytes_once_trimmed": trimmed,
        "ratio_once_trimmed": raw / trimmed if trimmed else 0.0,
        "ratio_with_open_pages": raw / (total + pool.open_pages.nbytes()) if total else 0.0,
        "saturated_rows": usage.saturated,
        "nonfinite_rows": usage.not_finite,
        "device_reads": pool.slot_reader.reads,
        **({"offload": beyond} if (beyond := offload_figures()) else {}),
    }


def usage_figures(pool: LeanKVPool, usage: Usage) -> dict[str, Any]:
    """What of :func:`pool_figures` takes the same time however many pages the pool holds; ``bytes_raw`` is what its
    tokens would take in the model's dtype."""
    layout, layers = pool.layout, pool.layer_num
    parts = {
        "high": usage.high,
        "mid": usage.mid,
        "low": usage.low,
        "near": usage.near,
        "header": usage.header,
        "padding": usage.padding,
        "table": usage.records * PAGE_TABLE_ENTRY,
    }
    total = sum(parts.values())
    tokens = usage.records * layout.page_size // layers
    raw = pool.model_bytes(tokens)
    token_heads = max(usage.high_tokens + usage.mid_tokens + usage.low_tokens + usage.pruned_tokens, 1)
    return {
        "config": pool.config.describe(),
        "bytes": parts,
        "bytes_total": total,
        "bytes_open_pages": pool.open_pages.nbytes(),
        "bytes_allocated": pool.store.nbytes() + pool.open_pages.nbytes() + pool.open_pages.spare_nbytes(),
        "bytes_raw": raw,
        "tokens_held": tokens,
        "ratio": raw / total if total else 0.0,
        "share_high": usage.high_tokens / token_heads,
        "share_mid": usage.mid_tokens / token_heads,
        "share_low": usage.low_tokens / token_heads,
        "share_pruned": usage.pruned_tokens / token_heads,
        "pages_committed": pool.counts.committed,
        "pages_trimmed": pool.counts.trimmed,
        "pages_demoted": pool.counts.demoted,
        "pages_healed": pool.counts.healed,
        "pages_evicted": pool.counts.evicted,
        "units_total": pool.ledger.units,
        "units_free": int(pool.ledger.free_units),
        "blocks_free": pool.store.num_blocks - usage.blocks,
        "blocks_total": pool.store.num_blocks,
        "block_bytes": layout.block_bytes,
        "page_size": layout.page_size,
    }


def server_info(_scheduler: Any) -> dict[str, Any]:
    """The ``leankv`` entry of ``/server_info``: the figures, and ``bytes_by_head``, a list a layer of bytes by KV
    head.

    The latter reads every record's header, so nobody gets it who does not ask. Over tensor-parallel ranks all of it is
    about the pool, and the heads, of the rank that answers, the first.
    """
    pool = current_pool()
    if pool is None:
        return {}
    if pool.store.blocks.is_cuda:
        # A forward under way may have entered a record in the table and not written it yet.
        torch.cuda.synchronize(pool.store.blocks.device)
    return {**pool_figures(pool, pool.store.usage()), "bytes_by_head": pool.store.usage_by_head().tolist()}
