"""What a token costs, and how many fit."""

from __future__ import annotations

from typing import Any

from leankv_kernels import RecordLayout, RecordStore
from leankv_sglang.compression.build import kernels_for, layout_of
from leankv_sglang.compression.commit_memory import commit_bytes
from leankv_sglang.config import required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.ledger import LOGICAL_FACTOR
from leankv_sglang.kvcache.open_pages import OpenPages
from leankv_sglang.kvcache.places import spare_pages
from leankv_sglang.models.layer_kinds import compressed_layers, window_token_bytes
from leankv_sglang.models.ranks import query_heads_on

DEFAULT_CPU_BYTES = 2 << 30
"""KV budget on a machine without an accelerator, unless an eighth of its memory is less."""
PAGE_TABLE_ENTRY = 4
RING_ENTRY = 4
SCORE_BYTES = 4


def page_bytes(layout: RecordLayout, num_layers: int) -> int:
    """Bytes one page reserves in all layers: its worst-case blocks, their ring entries, and the page-table entries of
    the logical pages that may take its place once they have shrunk."""
    entries = PAGE_TABLE_ENTRY * LOGICAL_FACTOR
    return num_layers * (layout.record_bytes + layout.max_blocks * RING_ENTRY + entries)


def bytes_per_token(kvc: Any, num_layers: int) -> int:
    """The price SGLang divides its memory budget by; ``kvc`` is its KVCacheConfigurator."""
    from sglang.srt.runtime_context import get_parallel, get_schedule

    model, page_size = kvc.model_config, get_schedule().page_size
    layout = layout_of(required_config(), page_size, model, get_parallel().attn_tp_size)
    return -(-page_bytes(layout, num_layers) // page_size)


def memory_for_pages(kvc: Any, budget: int) -> int:
    """What of a memory budget in bytes is left for pages, once all request rows have their open pages, prefills their
    spare ones, and commits what they take.

    Args:
        kvc: SGLang's KVCacheConfigurator.
        budget: what ``--mem-fraction-static`` leaves beside the weights.

    Raises:
        LeanKVError: where nothing is left.
    """
    from sglang.srt.runtime_context import get_parallel, get_schedule

    model, page_size, ranks = kvc.model_config, get_schedule().page_size, get_parallel().attn_tp_size
    layout = layout_of(required_config(), page_size, model, ranks)
    full, query_heads = getattr(kvc.layer_info, "full_attention_layer_ids", None), query_heads_on(model, ranks)
    layers = kvc.layer_info.num_effective_layers if full is None else len(full)
    row = open_page_bytes(layout, layers, query_heads, model.dtype.itemsize)
    requests = get_schedule().max_running_requests
    if requests is None:
        requests = kvc.resolve_max_num_reqs(budget // bytes_per_token(kvc, layers))
    else:
        requests = max(1, requests // kvc.attn_dp_size)
    rows, tokens = requests + 1, most_tokens(model.context_len)
    spare = spare_pages(tokens, rows, page_size) * open_page_bytes(layout, 1, query_heads, model.dtype.itemsize)
    ops, pages = kernels_for(kvc.device, required_config(), layout), pages_committed(layers, rows, tokens, page_size)
    fixed = rows * row + spare + commit_bytes(ops, layout, query_heads, model.dtype.itemsize, pages)
    if fixed >= budget:
        raise LeanKVError(
            f"LeanKV cannot start: the open pages of {requests} requests, and what prefills and commits work with, "
            f"take {fixed / 2**30:.2f} GiB, and {max(budget, 0) / 2**30:.2f} GiB are left beside the weights; lower "
            "--max-running-requests or raise --mem-fraction-static."
        )
    return budget - fixed


def most_tokens(context: int) -> int:
    """Tokens of a prefill at most, as SGLang cuts them; a prompt that is not cut may have the whole context."""
    from sglang.srt.runtime_context import get_schedule

    schedule = get_schedule()
    chunk: int | None = schedule.chunked_prefill_size
    return chunk if chunk and chunk > 0 else max(schedule.max_prefill_tokens or 0, context)


def pages_committed(layers: int, rows: int, tokens: int, page_size: int) -> int:
    """Pages, each of one layer, that are committed together at most: those that a decode step has filled in all layers,
    or those that a prefill of so many tokens fills in one, a request having begun one of them before."""
    return max(layers * rows, tokens // page_size + rows)


def memory_line(store: RecordStore, open_pages: OpenPages, commits: int) -> str:
    """What memory went to, for the log; ``commits`` are the bytes that a commit takes at most."""
    pages = open_pages.nbytes(), open_pages.spare_nbytes()
    parts = (store.blocks.nbytes, store.page_table.nbytes, store.ring.nbytes(), *pages, commits)
    blocks, table, ring, raw, spare, most = (f"{n / 2**20:,.1f}" for n in parts)
    return (
        f"LeanKV memory in MiB: blocks {blocks}, page table {table}, free list {ring}, {open_pages.rows} open pages "
        f"{raw}, {open_pages.spare} spare pages {spare}, commits at most {most}"
    )


def default_max_total_tokens(
    model: Any, page_size: int, tp_size: int, dp_size: int, window_tokens: float = 0.0, windows: int = 0
) -> int:
    """Tokens of the default CPU budget for an sglang ModelConfig, shared by all ranks.

    Args:
        window_tokens: of the pool of sliding windows for each token of full layers (``--swa-full-tokens-ratio``).
        windows: of that pool, whatever the full layers have.
    """
    import psutil

    layout = layout_of(required_config(), page_size, model, tp_size)
    budget = min(DEFAULT_CPU_BYTES, psutil.virtual_memory().total // 8) // (tp_size * dp_size)
    page, window = page_bytes(layout, compressed_layers(model)), window_token_bytes(model, tp_size)
    page += int(window_tokens * page_size * window)
    budget -= windows * window
    return max(budget // page, 1) * page_size


def open_page_bytes(layout: RecordLayout, num_layers: int, num_query_heads: int, itemsize: int = 2) -> int:
    """Bytes of one request row's raw open page and its column scores."""
    raw = layout.page_size * model_dtype_bytes_per_token(layout, num_layers, itemsize)
    return raw + num_layers * num_query_heads * layout.page_size * SCORE_BYTES


def tokens_for(memory: int, layout: RecordLayout, num_layers: int, num_query_heads: int, requests: int) -> int:
    """Units (``--max-total-tokens``) whose pool, tables and open pages together take at most ``memory`` bytes.

    Args:
        requests: running requests; SGLang keeps one row more.
    """
    rest = memory - (requests + 1) * open_page_bytes(layout, num_layers, num_query_heads)
    return max(rest // page_bytes(layout, num_layers), 0) * layout.page_size


def model_dtype_bytes_per_token(layout: RecordLayout, num_layers: int, itemsize: int = 2) -> int:
    """Bytes a token takes in a pool of the model's own dtype."""
    return num_layers * layout.num_kv_heads * (layout.head_dim + layout.v_head_dim) * itemsize
