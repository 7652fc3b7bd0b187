"""A scheduler of a multiprocessor of compute capability 9.0, running some warps through the same instructions.

Order, stalls and barriers are the compiler's own, read off the control words; pipes have their throughputs; memory has
always answered. So it says what arithmetic and issue slots leave possible, not what a GPU does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.gpu.sass import Instruction

SCHEDULERS, CLOCK_HZ = 132 * 4, 1.755e9
"""Of an H200. Other GPUs have other numbers of multiprocessors, clocks and memories."""
_ALU = frozenset(
    (
        *("LOP3", "SHF", "PRMT", "FMNMX", "ISETP", "SEL", "IADD3", "VIADD", "LEA", "I2FP", "FSEL", "FSETP", "PLOP3"),
        *("P2R", "R2P", "VIMNMX", "VIADDMNMX", "IABS", "MOV", "CS2R", "HADD2"),
    )
)
_LSU = frozenset(("LDS", "LDSM", "STS", "LDGSTS", "SHFL", "LDG"))
_LATENCY = {
    "LDS": 30, "LDSM": 34, "SHFL": 25, "MUFU": 24, "IMMA": 34, "LDG": 400, "LDGSTS": 20, "STS": 20, "S2R": 30,
    "S2UR": 30, "LDC": 30, "ULDC": 10, "I2FP": 10,
}  # fmt: skip


def pipe_of(opcode: str) -> tuple[str, int]:
    """The pipe that an instruction of a warp takes, and for how many cycles."""
    if opcode == "IMMA":
        return "tensor", 8
    if opcode == "MUFU":
        return "xu", 8
    if opcode in _LSU:
        return "lsu", 4  # the four schedulers share one port
    if opcode == "IMAD":
        return "fmaheavy", 2
    if opcode in ("FFMA", "FMUL", "FADD"):
        return "fma", 1
    return ("alu", 2) if opcode in _ALU else ("other", 1)


def cycles_per_page(code: Sequence[Instruction], warps: int, rounds: int = 6) -> float:
    """Cycles in which a scheduler finishes a page, once all warps are under way."""
    position, ready = [0] * warps, [37 * w for w in range(warps)]
    barriers = [[0] * 6 for _ in range(warps)]
    busy: Counter[str] = Counter()
    done, now, start = 0, 0, None
    decoded = [_decode(x) for x in code]
    while done < rounds * warps:
        chosen = None
        for k in range(warps):
            w = (done + k + now) % warps
            if ready[w] > now:
                continue
            pipe, _, _, wait, _, _ = decoded[position[w]]
            if any(wait >> b & 1 and barriers[w][b] > now for b in range(6)) or busy[pipe] > now:
                continue
            chosen = w
            break
        if chosen is None:
            now += 1
            continue
        pipe, taken, latency, _, sets, stall = decoded[position[chosen]]
        busy[pipe] = now + taken
        for b in sets:
            barriers[chosen][b] = max(barriers[chosen][b], now + latency)
        ready[chosen] = now + max(1, stall)
        position[chosen] += 1
        if position[chosen] == len(code):
            position[chosen] = 0
            done += 1
            if done == 2 * warps:
                start = now
        now += 1
    assert start is not None
    return (now - start) / ((rounds - 2) * warps)


def _decode(x: Instruction) -> tuple[str, int, int, int, list[int], int]:
    word = x.control >> 41
    stall, write, read, wait = word & 15, word >> 5 & 7, word >> 8 & 7, word >> 11 & 63
    pipe, taken = pipe_of(x.opcode)
    return pipe, taken, _LATENCY.get(x.opcode, 12), wait, [b for b in (write, read) if b < 6], stall
