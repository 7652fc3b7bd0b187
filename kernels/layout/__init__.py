"""The byte layout of a record, the compressed form of one (page, layer). This folder alone defines it.

Backends read and write records by it: they get its numbers as a :class:`RecordShape` and, in C++ and CUDA, its
constants from ``record_format.h``. docs/record-format.md has a picture and an example in numbers. Here, ``format`` has
tiers, planes and header words, ``sizes`` how long everything is, ``places`` where runs and tokens lie, ``shape`` what
kernels are given, ``words`` reads headers; ``header`` writes the C++ header.

A record is one run of bytes laid over fixed-size blocks and ordered by worth, so that cutting its tail is all that
trimming and demoting ever do::

    header | base codes of far tokens | refinement of far tokens | near part
           ^ base_start               ^ refine_start              ^ near_start

Header (int32 words): page, layer, blocks, bytes, level, magic, 2 spare (zero) | block list | per KV head {counts of
high, mid and low tokens in 10 bits each, base, refine, near offsets} | per KV head the 2-bit tier map (token t in byte
t % (P/4), bits 2 * (t // (P/4))) | from a multiple of 64 on, per KV head the centre of the page's keys, head_dim fp16.

Every code is the top ``b`` bits of one 8-bit master code over the token's [min, max], read at the centre of its bin,
so a low token is a high token with its tail cut off and one scale and zero serve every tier. Keys are coded less the
centre of their page, so that what all have in common costs no precision. Codes are stored as
planes, top bits first, as wide as :func:`key_planes` and :func:`value_planes` say: 4 bits for keys, 2 for values. A far
token has the planes of a low code in the base, and those of the bits it is longer by in its refinement; a pruned token
has all of them in one run, in that order. Inside a
section each KV head owns one run per kind of data; runs start at multiples of 16 bytes. Far tokens come high first,
then mid, then low, each in order of position; the tier map gives true positions back. A mid token has the keys of one
of its neighbours and the values of the other, so refined keys, and refined values, are the first so many far tokens'.

Planes are laid out for dot products over whole registers, without a transpose (:class:`Span` has the arithmetic):

- scales: four arrays of fp16, key scale, key zero, value scale, value zero of all tokens of the run.
- key plane: tokens in groups of 16. Eight neighbouring channels of a token are one 32-bit word, first channel lowest;
  a group stores word 0 of its tokens side by side, then word 1 of all, ... A group cut short stores what it has.
- value plane: tokens in quads. One byte per channel holds the 2-bit codes of a quad, first token lowest. (Planes of
  another width: words of 8 channels, and as many tokens a byte as have room.)
"""

from leankv_kernels.layout.format import (
    ALIGN,
    COUNT_BITS,
    H_BASE,
    H_COUNTS,
    H_NEAR,
    H_REFINE,
    HEAD_WORDS,
    HEADER_ALIGN,
    HEADER_WORDS,
    HIGH,
    KEY_GROUP,
    KEY_PLANE,
    KEY_WORD,
    LEVEL_BASE,
    LEVEL_FAR,
    LEVEL_NEAR,
    LOW,
    MAGIC,
    MASTER_BITS,
    MAX_DIM,
    MAX_PAGE,
    MID,
    PRUNED,
    SCALE_BYTES,
    TIER_BITS,
    TIERS,
    VALUE_PLANE,
    VALUE_QUAD,
    W_BLOCKS,
    W_BYTES,
    W_LAYER,
    W_LEVEL,
    W_MAGIC,
    W_PAGE,
    W_SPARE,
    Tier,
    TierCounts,
    align_up,
    bin_centre,
    bin_width,
    key_planes,
    value_planes,
)
from leankv_kernels.layout.places import (
    Places,
    Run,
    Runs,
    Sections,
    Span,
)
from leankv_kernels.layout.shape import (
    RecordShape,
)
from leankv_kernels.layout.sizes import (
    RecordLayout,
    TokenBytes,
)
from leankv_kernels.layout.words import Header, read_header

__all__ = [
    "ALIGN",
    "COUNT_BITS",
    "HEADER_ALIGN",
    "HEADER_WORDS",
    "HEAD_WORDS",
    "HIGH",
    "H_BASE",
    "H_COUNTS",
    "H_NEAR",
    "H_REFINE",
    "KEY_GROUP",
    "KEY_PLANE",
    "KEY_WORD",
    "LEVEL_BASE",
    "LEVEL_FAR",
    "LEVEL_NEAR",
    "LOW",
    "MAGIC",
    "MASTER_BITS",
    "MAX_DIM",
    "MAX_PAGE",
    "MID",
    "PRUNED",
    "SCALE_BYTES",
    "TIERS",
    "TIER_BITS",
    "VALUE_PLANE",
    "VALUE_QUAD",
    "W_BLOCKS",
    "W_BYTES",
    "W_LAYER",
    "W_LEVEL",
    "W_MAGIC",
    "W_PAGE",
    "W_SPARE",
    "Header",
    "Places",
    "RecordLayout",
    "RecordShape",
    "Run",
    "Runs",
    "Sections",
    "Span",
    "Tier",
    "TierCounts",
    "TokenBytes",
    "align_up",
    "bin_centre",
    "bin_width",
    "key_planes",
    "read_header",
    "value_planes",
]
