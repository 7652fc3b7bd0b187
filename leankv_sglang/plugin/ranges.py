"""Numbers among SGLang's flags that can only be a mistake, which it takes and dies of later, or never looks at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from leankv_sglang.compression.build import layout_of
from leankv_sglang.config import required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.sizing import tokens_for
from leankv_sglang.models.layer_kinds import compressed_layers
from leankv_sglang.models.ranks import query_heads_on

LEAST_PAGES = 4
"""Of a pool: a prompt may fill all but two of its pages, and an answer needs one."""

AT_LEAST: dict[str, int] = {
    "max_running_requests": 1,
    "max_prefill_tokens": 1,
    "context_length": 1,
    "tp_size": 1,
    "dp_size": 1,
    "pp_size": 1,
    "nnodes": 1,
    "node_rank": 0,
    "stream_interval": 1,
    "tokenizer_worker_num": 1,
    "detokenizer_worker_num": 1,
    "watchdog_timeout": 1,
    "decode_log_interval": 1,
}
"""The least that a flag takes."""


def check_ranges(server_args: Any) -> None:
    """Check SGLang's arguments, once LeanKV's defaults are among them.

    Raises:
        LeanKVError: one sentence naming the first flag that is out of its range, and the range.
    """
    for name, least in AT_LEAST.items():
        value = getattr(server_args, name, None)
        if isinstance(value, (int, float)) and not least <= value < math.inf:
            raise LeanKVError(f"{_flag(name)} is a number of at least {least}, not {value}.")
    tokens, least = server_args.max_total_tokens, LEAST_PAGES * server_args.page_size
    if tokens is not None and tokens < least:
        raise LeanKVError(
            f"--max-total-tokens must hold at least {LEAST_PAGES} pages, which are {least} tokens, not {tokens}."
        )
    fraction = server_args.mem_fraction_static
    if fraction is not None and not 0 < fraction < 1:
        raise LeanKVError(f"--mem-fraction-static is a number between 0 and 1, not {fraction}.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_memory(model: Any, cfg: Any) -> None:
    """Check that a pool whose size was given fits into the machine at all. GPUs are SGLang's to look at: it gives a
    pool what there is.

    Args:
        model: sglang's ModelConfig.
        cfg: SGLang's arguments, resolved.

    Raises:
        LeanKVError: one sentence that says how many tokens would fit.
    """
    if cfg.device != "cpu" or cfg.max_total_tokens is None:
        return
    ranks = (cfg.tp_size or 1) * (cfg.dp_size or 1)
    layout = layout_of(required_config(), cfg.page_size, model, cfg.tp_size)
    heads, layers = query_heads_on(model, cfg.tp_size), compressed_layers(model)
    memory, requests = machine_memory(), cfg.max_running_requests or 1
    fit = tokens_for(memory // ranks, layout, layers, heads, -(-requests // (cfg.dp_size or 1)))
    if fit < LEAST_PAGES * cfg.page_size:
        raise LeanKVError(
            f"LeanKV cannot start: the open pages of {requests} requests leave no room for others in the "
            f"{memory / 2**30:.1f} GiB of this machine; lower --max-running-requests."
        )
    if cfg.max_total_tokens > fit:
        raise LeanKVError(
            f"--max-total-tokens {cfg.max_total_tokens} is more than the {memory / 2**30:.1f} GiB of this machine "
            f"hold; {fit} is the most, less what the model's weights take."
        )


def machine_memory() -> int:
    """Bytes of memory that this process and its children may have: the machine's, or its control group's if less."""
    import psutil

    total: int = psutil.virtual_memory().total
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return total
