"""What a token costs, and how many fit."""

from __future__ import annotations

from typing import Any

from leankv_kernels import RecordLayout
from leankv_sglang.config import required_config
from leankv_sglang.memory.ledger import LOGICAL_FACTOR
from leankv_sglang.pool import make_layout

DEFAULT_CPU_BYTES = 2 << 30
"""KV budget on a machine without an accelerator, unless an eighth of its memory is less."""
PAGE_TABLE_ENTRY = 4
RING_ENTRY = 4


def page_bytes(layout: RecordLayout, num_layers: int) -> int:
    """Bytes one page reserves in all layers: its worst-case blocks, their ring entries, and the page-table entries of
    the logical pages that may take its place once they have shrunk."""
    entries = PAGE_TABLE_ENTRY * LOGICAL_FACTOR
    return num_layers * (layout.record_bytes + layout.max_blocks * RING_ENTRY + entries)


def bytes_per_token(kvc: Any, num_layers: int) -> int:
    """The price SGLang divides its memory budget by; ``kvc`` is its KVCacheConfigurator."""
    from sglang.srt.runtime_context import get_parallel, get_schedule

    model, page_size = kvc.model_config, get_schedule().page_size
    heads = model.get_num_kv_heads(get_parallel().attn_tp_size)
    layout = make_layout(required_config(), page_size, heads, model.head_dim)
    return -(-page_bytes(layout, num_layers) // page_size)


def default_max_total_tokens(model: Any, page_size: int) -> int:
    """Tokens of the default CPU budget for an sglang ModelConfig."""
    import psutil

    layout = make_layout(required_config(), page_size, model.get_total_num_kv_heads(), model.head_dim)
    budget = min(DEFAULT_CPU_BYTES, psutil.virtual_memory().total // 8)
    return max(budget // page_bytes(layout, model.num_hidden_layers), 1) * page_size


def model_dtype_bytes_per_token(layout: RecordLayout, num_layers: int, itemsize: int = 2) -> int:
    """Bytes a token takes in a pool of the model's own dtype."""
    return 2 * num_layers * layout.num_kv_heads * layout.head_dim * itemsize
