"""A record layout in the numbers that kernels are given: one dataclass, under the same names in Triton, C++ and CUDA.

``record_format.h``, which :mod:`leankv_kernels.layout.header` writes, has the struct of the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leankv_kernels.layout.format import bin_centre

if TYPE_CHECKING:
    from leankv_kernels.layout.sizes import RecordLayout


@dataclass(frozen=True)
class RecordShape:
    """What a kernel has to know of a :class:`RecordLayout`.

    Of bits there are those of a base code, which every far token has, and those of the refinement that a high token has
    besides; what planes they lie in says :mod:`~leankv_kernels.layout.format`. A code is read at its bin's centre:
    ``*_centre_*`` is how far above the code, its missing bits zero, in steps of the master code.
    """

    page_size: int
    heads: int
    head_dim: int  # of keys
    v_head_dim: int
    key_base_bits: int
    value_base_bits: int
    key_refine_bits: int
    value_refine_bits: int
    near: bool
    mid_keys_fine: bool
    mid_values_fine: bool
    block_bytes: int
    block_shift: int  # log2 of block_bytes
    max_blocks: int
    header_bytes: int
    list_word: int
    head_word: int
    tier_map_start: int
    centre_start: int
    key_step: float  # of a high code, in steps of the master code
    key_centre_high: float
    key_centre_low: float
    value_step: float
    value_centre_high: float
    value_centre_low: float

    @classmethod
    def of(cls, layout: RecordLayout) -> RecordShape:
        """The numbers of a layout."""
        key_step, key_centre = bin_centre(layout.high.key_bits)
        value_step, value_centre = bin_centre(layout.high.value_bits)
        return cls(
            page_size=layout.page_size,
            heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            v_head_dim=layout.v_head_dim,
            key_base_bits=layout.low.key_bits,
            value_base_bits=layout.low.value_bits,
            key_refine_bits=layout.key_refine_bits,
            value_refine_bits=layout.value_refine_bits,
            near=layout.near,
            mid_keys_fine=layout.mid_keys_fine,
            mid_values_fine=layout.mid_values_fine,
            block_bytes=layout.block_bytes,
            block_shift=layout.block_bytes.bit_length() - 1,
            max_blocks=layout.max_blocks,
            header_bytes=layout.header_bytes,
            list_word=layout.list_word,
            head_word=layout.head_word,
            tier_map_start=layout.tier_map_start,
            centre_start=layout.centre_start,
            key_step=float(key_step),
            key_centre_high=key_centre,
            key_centre_low=bin_centre(layout.low.key_bits)[1],
            value_step=float(value_step),
            value_centre_high=value_centre,
            value_centre_low=bin_centre(layout.low.value_bits)[1],
        )

    # What Triton kernels count in: words, halves, powers of two.

    @property
    def pad(self) -> int:
        """``head_dim`` up to a power of two."""
        return 1 << (self.head_dim - 1).bit_length()

    @property
    def v_pad(self) -> int:
        """``v_head_dim`` up to a power of two."""
        return 1 << (self.v_head_dim - 1).bit_length()

    @property
    def block_words(self) -> int:
        """32-bit words of a block."""
        return self.block_bytes // 4

    @property
    def word_shift(self) -> int:
        """log2 of ``block_words``."""
        return self.block_shift - 2

    @property
    def tier_map_word(self) -> int:
        """The first KV head's tier map, in words."""
        return self.tier_map_start // 4

    @property
    def centre_half(self) -> int:
        """The first KV head's centre, in fp16 numbers."""
        return self.centre_start // 2
