"""Writes ``record_format.h``, by which C++ and CUDA have the format's constants and ``RecordShape`` from Python.

Run ``python -m leankv_kernels.layout.header`` after a change of :mod:`~leankv_kernels.layout.format` or of
:mod:`~leankv_kernels.layout.shape`, and commit the file; a test compares.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from leankv_kernels.layout import format as F
from leankv_kernels.layout.shape import RecordShape

PATH = Path(__file__).parent / "record_format.h"
"""Where the header is kept."""

_CONSTANTS: dict[str, list[tuple[str, int]]] = {
    "Tier codes of the tier map, and their bits.": [
        ("kPruned", F.PRUNED),
        ("kLow", F.LOW),
        ("kHigh", F.HIGH),
        ("kMid", F.MID),
        ("kTierBits", F.TIER_BITS),
    ],
    "What a record still holds: base codes, refinement of far tokens too, everything.": [
        ("kLevelBase", F.LEVEL_BASE),
        ("kLevelFar", F.LEVEL_FAR),
        ("kLevelNear", F.LEVEL_NEAR),
    ],
    "32-bit words of the header.": [
        ("kWordPage", F.W_PAGE),
        ("kWordLayer", F.W_LAYER),
        ("kWordBlocks", F.W_BLOCKS),
        ("kWordBytes", F.W_BYTES),
        ("kWordLevel", F.W_LEVEL),
        ("kWordMagic", F.W_MAGIC),
        ("kHeaderWords", F.HEADER_WORDS),
        ("kMagic", F.MAGIC),
    ],
    "32-bit words of a KV head: counts of tokens, and the bytes where its sections start.": [
        ("kHeadCounts", F.H_COUNTS),
        ("kHeadBase", F.H_BASE),
        ("kHeadRefine", F.H_REFINE),
        ("kHeadNear", F.H_NEAR),
        ("kHeadWords", F.HEAD_WORDS),
    ],
    "The word of counts: high, mid and low tokens, so many bits each, lowest bits first.": [
        ("kCountBits", F.COUNT_BITS),
        ("kCountMask", (1 << F.COUNT_BITS) - 1),
    ],
    "Bytes: at multiples of which runs start and the header ends; of a token's four scales.": [
        ("kAlign", F.ALIGN),
        ("kHeaderAlign", F.HEADER_ALIGN),
        ("kScaleBytes", F.SCALE_BYTES),
    ],
    "Codes: bits of the master code and of a plane; tokens and channels that lie together in one.": [
        ("kMasterBits", F.MASTER_BITS),
        ("kKeyPlaneBits", F.KEY_PLANE),
        ("kValuePlaneBits", F.VALUE_PLANE),
        ("kKeyGroup", F.KEY_GROUP),
        ("kKeyWord", F.KEY_WORD),
        ("kValueQuad", F.VALUE_QUAD),
    ],
    "The longest page and the widest head, of keys or of values.": [("kMaxPage", F.MAX_PAGE), ("kMaxDim", F.MAX_DIM)],
}


def render() -> str:
    """The header's text."""
    lines = [
        "// Written by `python -m leankv_kernels.layout.header` from the layout in Python: change it there, not here.",
        "//",
        "// The record's constants and the numbers of a layout, for C++ and CUDA; kernels/layout/__init__.py explains.",
        "#pragma once",
        "",
        "#include <cstdint>",
        "",
        "// clang-format off",
        "namespace leankv {",
    ]
    for what, constants in _CONSTANTS.items():
        lines += ["", f"// {what}"]
        lines += [
            f"constexpr int {name} = {value:#x};" if name == "kMagic" else f"constexpr int {name} = {value};"
            for name, value in constants
        ]
    named = [("double" if field.type == "float" else "int64_t", field.name) for field in fields(RecordShape)]
    lines += [
        "",
        "// A record layout in numbers: RecordShape of kernels/layout/shape.py, which explains. X(type, name).",
        "#define LEANKV_RECORD_SHAPE(X) \\",
        *(f"    X({kind}, {name}) \\" for kind, name in named[:-1]),
        f"    X({named[-1][0]}, {named[-1][1]})",
        "",
        "struct RecordShape {",
        *(f"    {kind} {name};" for kind, name in named),
        "};",
        "",
        "}  // namespace leankv",
        "// clang-format on",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render())
