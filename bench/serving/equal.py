"""Equal bytes: how large a pool of ours takes what one of 16-bit keys and values takes."""

from __future__ import annotations

from collections.abc import Sequence

from leankv_sglang.compression.build import layout_for
from leankv_sglang.config import DEFAULT_PAGE_SIZE
from leankv_sglang.kvcache.sizing import tokens_for
from leankv_sglang.models.shape import read_shape
from leankv_sglang.server.args import config_from_args, split_args


def units_for(memory: int, folder: str, flags: Sequence[str], requests: int) -> int:
    """``--max-total-tokens`` with which our pool, its tables and open pages take at most so many bytes.

    Args:
        memory: bytes.
        folder: of the model.
        flags: the server's, of which ours count.
        requests: ``--max-running-requests``.
    """
    shape = read_shape(folder)
    config, _ = config_from_args(split_args(flags)[0], folder)
    layout = layout_for(config, DEFAULT_PAGE_SIZE, shape)
    return tokens_for(memory, layout, shape.layers, shape.query_heads, requests)
