"""Rows of bench.kernels: all that attention does for a chunk of a prompt behind a committed context."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import bench.common.checkout  # noqa: F401
from bench.kernels.cases import PAGE, PATTERNS, ROTATION, WINDOW, Shape, draw_tiers, layout_of, record_bytes
from bench.kernels.dense import flash_attention_3
from bench.kernels.pages import fill, normal, sample_records, shuffled
from bench.kernels.rows import Row, compare, what_of
from bench.kernels.timing import Contestant, Setup, fastest, per_layer
from leankv_kernels import Ops, RawPages, RecordStore, build_plan

FORMS = ((None, False), (SDPBackend.FLASH_ATTENTION, False), (SDPBackend.FLASH_ATTENTION, True))
"""Of torch's attention: which kernel, and whether every query head gets a KV head of its own."""


def prefill_rows(shape: Shape, mix: str, context: int, chunk: int, setup: Setup) -> list[Row]:
    """Own pages, the pages before and the merge for ``chunk`` tokens of one request, beside causal dense attention.

    The chunk's own pages are committed already, as its later pages read them; committing is a row of its own.
    """
    device, layout, tiers = setup.device, layout_of(shape, mix), draw_tiers(shape, mix)
    pages = shuffled(1, (context + chunk) // PAGE)
    far, near = record_bytes(layout, tiers)
    which = (pages[0] - 1) % PATTERNS
    nbytes = int(far[which[:-WINDOW]].sum() + near[which[-WINDOW:]].sum()) + shape.dense_bytes(chunk)
    layers = setup.layers(nbytes)
    store = RecordStore(layout, layers, pages.numel(), device)
    fill(store, *sample_records(shape, layout, tiers, setup))
    slots = (pages[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1).int().to(device)
    plan = build_plan(torch.zeros(1, dtype=torch.int64, device=device), [context], [chunk], slots, PAGE, WINDOW)
    q = normal(chunk, shape.query_heads, shape.head_dim, device=device, seed=3)
    size = (layers, chunk // PAGE, PAGE, shape.kv_heads, shape.head_dim)
    key, value = normal(*size, device=device, seed=1), normal(*size, device=device, seed=2)
    scores = torch.zeros(layers, chunk // PAGE, shape.query_heads, PAGE, dtype=torch.int32, device=device)
    raw = [RawPages(key[n], value[n], scores[n], plan.tile_range) for n in range(layers)]

    def step(ops: Ops, layer: int) -> Tensor:
        own = ops.attend_open(q, raw[layer], plan, shape.scale)
        past = ops.attend_committed(q, store, layer, plan, shape.scale, ROTATION)
        return ops.merge_states(*own, *past)[0]

    def contestant(name: str, ops: Ops) -> Contestant:
        return Contestant(name, per_layer(partial(step, ops), layers))

    others = {other.name: contestant(other.name, other) for other in setup.beside}
    what = what_of("prefill", shape, mix, context, 1) | {"queries": chunk}
    baselines = [*_sdpa(shape, q, context + chunk, setup), *_fa3(shape, q, context + chunk, setup)]
    rows = compare(setup, what, contestant("ours", setup.ops), baselines, nbytes, others)
    pairs = chunk * context + chunk * (chunk + 1) // 2
    return [row | {"gflops": 4 * pairs * shape.query_heads * shape.head_dim / row["ms"] / 1e6} for row in rows]


def _sdpa(shape: Shape, q: Tensor, tokens: int, setup: Setup) -> list[Contestant]:
    """torch's attention, causal to the lower right, in the form that is fastest."""
    from torch.nn.attention.bias import causal_lower_right  # imports the compiler, which takes seconds

    key, value = (normal(1, shape.kv_heads, tokens, shape.head_dim, device=q.device, seed=seed) for seed in (1, 2))
    wide = tuple(x.repeat_interleave(shape.group, 1) for x in (key, value))
    by_head, mask = q.transpose(0, 1)[None].contiguous(), causal_lower_right(len(q), tokens)

    def call(backend: SDPBackend | None, repeated: bool, _: int) -> Tensor:
        k, v = wide if repeated else (key, value)
        if backend is None:
            return scaled_dot_product_attention(by_head, k, v, attn_mask=mask, enable_gqa=not repeated)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(by_head, k, v, attn_mask=mask, enable_gqa=not repeated)

    forms = [
        Contestant(
            f"SDPA {backend.name.lower() if backend else 'any'} {'repeated' if repeated else 'gqa'}",
            per_layer(partial(call, backend, repeated), 1),
        )
        for backend, repeated in FORMS
    ]
    return fastest(forms, setup)


def _fa3(shape: Shape, q: Tensor, tokens: int, setup: Setup) -> list[Contestant]:
    attend = flash_attention_3()
    if attend is None:
        return []
    size = (tokens // PAGE, PAGE, shape.kv_heads, shape.head_dim)
    key, value = (normal(*size, device=q.device, seed=seed) for seed in (1, 2))
    table = torch.arange(len(key), dtype=torch.int32, device=q.device)[None]
    lengths = torch.tensor([tokens], dtype=torch.int32, device=q.device)

    def call(_: int) -> Tensor:
        where = {"cache_seqlens": lengths, "page_table": table}
        return attend(q[None], key, value, softmax_scale=shape.scale, causal=True, **where)

    return fastest([Contestant("FA3", per_layer(call, 1))], setup)
