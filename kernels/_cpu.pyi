"""The compiled module, for mypy; kernels/cpu/csrc/module.cpp is what it describes.

Every tensor is contiguous and in main memory; ValueError says which one is not, or has another dtype or shape.
"""

from torch import Tensor

class RecordShape:
    """``leankv_kernels.layout.RecordShape`` in C++, from the same fields by name, which can be read."""

    def __init__(self, **fields: float) -> None: ...
    def __getattr__(self, name: str) -> float: ...

def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def attend_open(
    *,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor,
    at: Tensor,
    tiles: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    cap: float,
    threads: int,
) -> None: ...
def attend_committed(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    layer: int,
    q: Tensor,
    tiles: Tensor,
    pages: Tensor,
    groups: Tensor,
    members: Tensor,
    out: Tensor,
    lse: Tensor,
    near_pages: int,
    scale: float,
    cap: float,
    rotated: bool,
    threads: int,
) -> None: ...
def merge_states(
    *,
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    sinks: Tensor,
    out: Tensor,
    lse: Tensor,
    threads: int,
) -> None: ...
def attend_window(
    *,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    slots: Tensor,
    requests: Tensor,
    sinks: Tensor,
    out: Tensor,
    window: int,
    scale: float,
    cap: float,
    threads: int,
) -> None: ...
def linear(*, x: Tensor, weight: Tensor, out: Tensor, threads: int) -> None: ...
def commit_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    layer: int,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    key: Tensor,
    value: Tensor,
    at: Tensor,
    tiers: Tensor,
    rotated: bool,
    threads: int,
) -> None: ...
def free_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
) -> None: ...
def cut_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    level: Tensor,
) -> None: ...
def count_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    counts: Tensor,
) -> None: ...
def count_heads(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    counts: Tensor,
) -> None: ...
def measure_packed(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    level: Tensor,
    far_bytes: Tensor,
    near_bytes: Tensor,
    held: Tensor,
) -> None: ...
def pack_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    far: Tensor,
    far_bytes: Tensor,
    near: Tensor,
    near_bytes: Tensor,
    held: Tensor,
) -> None: ...
def unpack_pages(
    *,
    shape: RecordShape,
    blocks: Tensor,
    page_table: Tensor,
    ring: Tensor,
    ring_head: Tensor,
    ring_free: Tensor,
    usage: Tensor,
    pages: Tensor,
    far: Tensor,
    far_bytes: Tensor,
    near: Tensor,
    near_bytes: Tensor,
    held: Tensor,
) -> None: ...
def dense_decode(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float, threads: int, cpu_bf16: bool = True
) -> None: ...
def read_bandwidth(words: Tensor, threads: int) -> int: ...
