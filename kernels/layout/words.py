"""The header of records, read: what a store, which knows nothing of codes, has to know of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.layout.format import (
    HEAD_WORDS,
    W_BLOCKS,
    W_BYTES,
    W_LAYER,
    W_LEVEL,
    W_PAGE,
    TierCounts,
)
from leankv_kernels.layout.sizes import RecordLayout


class Header(NamedTuple):
    """The parsed headers of n records; integer tensors."""

    page: Tensor  # [n]
    layer: Tensor  # [n]
    blocks: Tensor  # [n] blocks held
    nbytes: Tensor  # [n] bytes held, before padding to whole blocks
    level: Tensor  # [n] one of LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR
    block_list: Tensor  # [n, max_blocks], zero behind ``blocks``
    counts: TierCounts


def read_header(records: Tensor, layout: RecordLayout) -> Header:
    """Parse the headers of records uint8 ``[n, >= header_bytes up to the heads]``."""
    words = records.view(torch.int32)
    blocks = words[:, layout.list_word : layout.list_word + layout.max_blocks]
    packed = words[:, layout.head_word : layout.head_word + HEAD_WORDS * layout.num_kv_heads : HEAD_WORDS].long()
    return Header(
        words[:, W_PAGE],
        words[:, W_LAYER],
        words[:, W_BLOCKS],
        words[:, W_BYTES],
        words[:, W_LEVEL],
        blocks,
        TierCounts.of_word(packed),
    )
