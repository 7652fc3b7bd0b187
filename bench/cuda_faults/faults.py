"""Faults of the CUDA kernels' sources, each one change, and which tests should notice it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from leankv_kernels.cuda.unit import SOURCE

READ = "any_pages_read and not slow or ugly or bits"
TOGETHER = "no_bit_shows"
OPEN = "sequences and 64"
MERGE = "states_merge"
CAPPED = "caps_as and emulated"
COMMIT = "committed_to and 64-64"
TIERS = "tiers_are_those"
SHRINK = "same_as_the_reference and cuda"
PACKING = "what_arrives and cuda"
RANGE = "cuda and (bytes_of or who_reads or is_alone)"


class Fault(NamedTuple):
    """A change of one place in a source."""

    name: str
    file: str
    was: str
    becomes: str
    tests: str
    place: int = 0
    """Which of several places, from 0."""


WAIT = "cp_wait<1>();\n        __syncwarp();"
FAULTS = (
    Fault("no wait for keys", "attend.cuh", WAIT, "__syncwarp();", READ, 0),
    Fault("no wait for values", "attend.cuh", WAIT, "__syncwarp();", READ, 1),
    Fault("no sync behind the wait for keys", "attend.cuh", WAIT, "cp_wait<1>();", READ, 0),
    Fault("no sync behind the wait for values", "attend.cuh", WAIT, "cp_wait<1>();", READ, 1),
    Fault(
        "no sync before the next keys",
        "attend.cuh",
        "__syncwarp();\n        if (more) copy.keys",
        "if (more) copy.keys",
        READ,
    ),
    Fault(
        "no sync before the next values",
        "attend.cuh",
        "__syncwarp();\n        if (more) copy.values",
        "if (more) copy.values",
        READ,
    ),
    Fault(
        "no sync behind scales",
        "attend.cuh",
        "            __syncwarp();\n            keys.scores",
        "            keys.scores",
        READ,
    ),
    Fault(
        "near pages one too many",
        "attend.cuh",
        "number >= before - a.near_pages",
        "number >= before - a.near_pages - 1",
        READ,
    ),
    Fault("a cut page read near", "attend.cuh", " && now.level >= kLevelNear", "", READ),
    Fault(
        "scales put in order unsynchronized",
        "keys.cuh",
        "        __syncwarp();\n#pragma unroll",
        "#pragma unroll",
        READ,
    ),
    Fault("centre left out", "weights.cuh", "fma_(centre[n], row_step[n], top[n])", "top[n]", READ),
    Fault("halves of weights swapped", "weights.cuh", "lower ? r2 : r1", "lower ? r1 : r2", READ),
    Fault(
        "sets of weights swapped", "weights.cuh", "lower ? far_lane : near_lane", "lower ? near_lane : far_lane", READ
    ),
    Fault("copy not swizzled", "copy.cuh", "region + swizzled(place + here);", "region + place + here;", READ),
    Fault("a round of copies over and over", "copy.cuh", "entry = shfl(entry, lane + round);", "", READ),
    Fault("copied beyond a piece", "copy.cuh", "if (to < left) cp_async16", "cp_async16", READ),
    Fault("first entries of a long list again", "copy.cuh", "entry = records.list(r, first);\n        }", "}", READ),
    Fault("quad that two pieces share not joined", "values.cuh", "u[m] |= low[m];", "u[m] |= 0;", READ),
    Fault(
        "no sync before warps are merged", "merge.cuh", "        __syncthreads();\n        each(", "        each(", READ
    ),
    Fault("counter of arrivals left", "merge.cuh", "if (last) *arrivals = 0;", "", READ),
    Fault("first split forgotten", "merge.cuh", "for (int s = 0; s < splits", "for (int s = 1; s < splits", READ),
    Fault("second split forgets the first", "merge.cuh", "if (i) m =", "if (i > 1) m =", TOGETHER),
    Fault("sums folded in place", "merge.cuh", "*to_sums = folded(i + 1)", "*to_sums = folded(i)", TOGETHER),
    Fault(
        "one request's splits counted for all",
        "merge.cuh",
        "splits_of(query) - 1",
        "splits_of(rows.query(0)) - 1",
        TOGETHER,
    ),
    Fault("states of one request for all", "merge.cuh", "2 * (r / S::group) + 1) + split", "1) + split", TOGETHER),
    Fault("a block takes one entry", "attend.cuh", "unit += gridDim.x;", "unit += 1 << 20;", TOGETHER),
    Fault("rotated back by the wrong factor", "merge.cuh", "a.back / sum", "1 / sum", READ),
    Fault("sees the next token", "open.cuh", "token > first + r / S::group", "token > first + 1 + r / S::group", OPEN),
    Fault("a part of a group reads other keys", "open.cuh", "head / a.parts", "head % (a.heads / a.parts)", OPEN),
    Fault("stale tokens read", "open.cuh", "token <= last; token +=", "token <= last + 1; token +=", OPEN),
    Fault(
        "scores of a page before kept",
        "open.cuh",
        "const bool begins = a.alone && ",
        "const bool begins = false && ",
        OPEN,
    ),
    Fault(
        "values as keys",
        "states.cuh",
        "a.value + token * a.value_token",
        "a.key + token * a.key_token",
        "tokens_are_written",
    ),
    Fault("sinks left out", "states.cuh", "a.sinks ? ldg(a.sinks + row % a.heads) : -INFINITY", "-INFINITY", MERGE),
    Fault("one sink for all heads", "states.cuh", "row % a.heads", "0", MERGE),
    Fault("scores of records not capped", "weights.cuh", "keys.a.cap != 0.0f", "false", READ),
    Fault("capped without the centre", "weights.cuh", "centre[n] * twice", "0.0f", READ),
    Fault("scores of open pages not capped", "open.cuh", "a.cap != 0.0f", "false", CAPPED),
    Fault("outputs cut off", "numbers.cuh", "0x7FFF + (bits >> 16 & 1)", "0", "rounded_as_torch"),
    Fault("an empty state counts", "states.cuh", "peak == -INFINITY ? 0.0f : peak", "peak", MERGE),
    Fault(
        "raw pages in order", "tiers.cuh", "a.rows + ldg(a.at + blockIdx.y), index", "a.rows + blockIdx.y, index", TIERS
    ),
    Fault(
        "thresholds of the first page", "tiers.cuh", "a.of_pages ? record : (long long)blockIdx.z", "blockIdx.z", TIERS
    ),
    Fault("energies of neighbours", "tiers.cuh", "row * S::dim + half + c", "row * S::dim + c + 1", TIERS),
    Fault("the group's first query head alone", "tiers.cuh", "g < a.group", "g < 1", TIERS),
    Fault("low from above its threshold on", "tiers.cuh", "significance >= low", "significance > low", TIERS),
    Fault(
        "first pages of heads that keep nothing",
        "tiers.cuh",
        "a.keep_first && (high",
        "a.keep_first && (true || high",
        TIERS,
    ),
    Fault("every block plans", "commit.cuh", "if (!lds<int>(shared)) return;", "", COMMIT),
    Fault("the first block plans", "commit.cuh", "== (int)gridDim.x - 1", "== 0", COMMIT),
    Fault("arrivals stay", "commit.cuh", "if (last) *a.arrivals = 0;", "", COMMIT),
    Fault("records of the first layer", "commit.cuh", "blockIdx.z * a.table_stride + id", "id", COMMIT),
    Fault("padding of keys left", "write.cuh", "b < at + aligned(bytes); b +=", "b < at; b +=", COMMIT),
    Fault("keys less a centre not rounded", "commit.cuh", "half_value(half & 0x7FFF ? half : 0)", "x[k]", COMMIT),
    Fault("zero rounded up", "quantize.cuh", "(bits + (exact ? 0 : 1)) | 0x8000", "bits | 0x8000", COMMIT),
    Fault("mid tokens before high ones", "commit.cuh", "tier == kHigh  ? 0", "tier == kHigh  ? counts.mid", COMMIT),
    Fault(
        "blocks of a page twice",
        "commit.cuh",
        "(head + taken + before) % a.num_blocks",
        "(head + taken) % a.num_blocks",
        COMMIT,
    ),
    Fault(
        "rows coded again that need not be", "quantize.cuh", " || !row.strays(bits, lane)) return", ") return", COMMIT
    ),
    Fault(
        "rows coded again too seldom",
        "quantize.cuh",
        "12u * (unsigned)squares > 5u",
        "12u * (unsigned)squares > 6u",
        COMMIT,
    ),
    Fault("a second coding kept always", "quantize.cuh", "? other : row;", "? other : other;", COMMIT),
    Fault("ranges extended too far", "quantize.cuh", "times(share, times(255.0", "times(share, times(256.0", COMMIT),
    Fault(
        "bulks moved to centres of wide bins",
        "quantize.cuh",
        "const int first = width - 1 - narrow",
        "const int first = width - 1",
        COMMIT,
    ),
    Fault("pages that are not finite read", "commit.cuh", "if (!readable) return", "if (false) return", RANGE),
    Fault("values that are not finite not seen", "commit.cuh", "&& is_finite(y)", "", RANGE),
    Fault("queries that are not finite read", "query.cuh", "step + none", "step", RANGE),
    Fault("values of later tokens read", "open.cuh", "if (token <= first + r / S::group) out", "out", RANGE),
    Fault("keys that are not finite read", "open.cuh", "x[i][r] += none;", "x[i][r] += 0;", RANGE),
    Fault(
        "page of the record not written",
        "write.cuh",
        "*(uint32_t*)(to + (at & (s.block_bytes - 1))) = value;",
        "if (at) *(uint32_t*)(to + (at & (s.block_bytes - 1))) = value;",
        COMMIT,
    ),
    Fault(
        "blocks given back in another order",
        "shrink.cuh",
        "const long long to = tail + given + lds<int>(lists + 12 * r + 8);",
        "const long long to = tail + given + all - n - lds<int>(lists + 12 * r + 8);",
        SHRINK,
    ),
    Fault(
        "cut one block short",
        "shrink.cuh",
        "first = kept, count = had - kept;",
        "first = kept + 1, count = had - kept - 1;",
        SHRINK,
    ),
    Fault(
        "usage counted twice",
        "shrink.cuh",
        "change.add(header.usage(a.shape, level, kept), 1);",
        "change.add(header.usage(a.shape, held, had), 1);",
        SHRINK,
    ),
    Fault(
        "tokens told of another tier",
        "shrink.cuh",
        "counts[3] += tokens.high, counts[4] += tokens.mid, counts[5] += tokens.low;",
        "counts[3] += tokens.high, counts[4] += tokens.low, counts[5] += tokens.mid;",
        SHRINK,
    ),
    Fault(
        "blocks' ids leave with a page",
        "packing.cuh",
        "if (i == kWordPage || i == kWordLayer || i == kWordBlocks) word = 0;",
        "if (i == kWordPage || i == kWordLayer) word = 0;",
        PACKING,
    ),
    Fault("padding of a block not cleared", "packing.cuh", "else if (i < packed.length)", "else", PACKING),
    Fault(
        "blocks taken past the ring's end",
        "packing.cuh",
        "ldg(a.ring + (at < a.num_blocks ? at : at - a.num_blocks))",
        "ldg(a.ring + (at < a.num_blocks ? at : a.num_blocks - 1))",
        PACKING,
    ),
)


def plant(fault: Fault, folder: Path) -> None:
    """The sources with a fault, in a new folder.

    Raises:
        ValueError: where the sources no longer have what it changes.
    """
    shutil.copytree(SOURCE, folder)
    file = folder / fault.file
    parts = file.read_text().split(fault.was)
    if len(parts) < fault.place + 2:
        raise ValueError(f"the fault {fault.name!r} changes what {fault.file} no longer has: mend {__name__}")
    at = fault.place + 1
    file.write_text(fault.was.join(parts[:at]) + fault.becomes + fault.was.join(parts[at:]))
