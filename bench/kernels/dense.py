"""Dense 16-bit attention that bench.kernels compares with, each in the best form it has on the machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import bench.common.checkout  # noqa: F401
from bench.kernels.cases import PAGE, Bundle, Shape
from bench.kernels.pages import normal, pages_of
from bench.kernels.timing import Contestant, Setup, fastest, per_layer

TRIAL_TOKENS = 4096
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
WORKSPACE_BYTES = 256 << 20


class Form(NamedTuple):
    """A way of asking torch for attention: which kernel, and whether a KV head's query heads go as its query rows."""

    backend: SDPBackend | None
    folded: bool

    @property
    def name(self) -> str:
        """What rows call it."""
        kernel = self.backend.name.removesuffix("_ATTENTION").lower() if self.backend else "any"
        return f"SDPA {kernel} {'folded' if self.folded else 'gqa'}"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Attention of ``q [B, Hq, Q, D]`` over ``k, v [B, H, T, D]``, ``causal`` where Q is T."""
        batch, _, queries, dim = q.shape
        with sdpa_kernel(self.backend) if self.backend else nullcontext():
            if not self.folded:
                return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            rows = q.reshape(batch, k.shape[1], -1, dim)
            mask = _causal(queries, rows.shape[2] // queries, q.device) if causal else None
            return scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(q.shape)


@lru_cache(maxsize=8)
def _causal(queries: int, group: int, device: torch.device) -> Tensor:
    return torch.ones(queries, queries, dtype=torch.bool, device=device).tril().repeat(group, 1)


class Dense(NamedTuple):
    """Keys and values ``[layers, B, H, T, D]``; on a GPU views of pages ``[layers, B * n, P, H, D]``."""

    keys: Tensor
    values: Tensor
    pages: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(bundle: Bundle, setup: Setup) -> Dense:
        """The tokens of a bundle in as many layers as it takes to be cold."""
        shape, layers = bundle.shape, setup.layers(bundle.dense_bytes)
        tokens = (bundle.contexts, bundle.context)
        if setup.device.type != "cuda":
            size = (layers, bundle.contexts, shape.kv_heads, bundle.context, shape.head_dim)
            return Dense(normal(*size, device=setup.device, seed=1), normal(*size, device=setup.device, seed=2), None)
        size = (layers, bundle.contexts * bundle.context // PAGE, PAGE, shape.kv_heads, shape.head_dim)
        pages = (normal(*size, device=setup.device, seed=1), normal(*size, device=setup.device, seed=2))
        keys, values = (x.view(layers, *tokens, *size[3:]).transpose(2, 3) for x in pages)
        requests = (-1, bundle.batch, -1, -1, -1)
        return Dense(keys.expand(requests), values.expand(requests), pages)


def sdpa(shape: Shape, q: Tensor, k: Tensor, v: Tensor, setup: Setup, causal: bool = False) -> list[Contestant]:
    """torch's attention of ``q [B, Hq, Q, D]`` over every layer of ``k, v``, in the form that is fastest on a part."""
    form = _best_form(shape, q, k, v, setup, causal)
    if not form:
        setup.note("SDPA has no fused kernel here: left out")
        return []

    def call(layer: int) -> Tensor:
        return form.attend(q, k[layer], v[layer], causal)

    return [Contestant(form.name, per_layer(call, len(k)))]


_chosen: dict[tuple[Any, ...], Form | None] = {}


def _best_form(shape: Shape, q: Tensor, k: Tensor, v: Tensor, setup: Setup, causal: bool) -> Form | None:
    # A part will do on a CPU; the whole may be what makes a GPU's choice.
    on_cpu = setup.device.type == "cpu"
    few, tokens = (1, TRIAL_TOKENS) if on_cpu else (q.shape[0], k.shape[3])
    key = (shape, few, q.shape[2], min(k.shape[3], tokens), causal)
    if key not in _chosen:
        part = (q[:few], k[:8, :few, :, :tokens], v[:8, :few, :, :tokens])
        backends = (None,) if on_cpu else FUSED
        forms = {form.name: form for b in backends for folded in (True, False) for form in [Form(b, folded)]}
        # Not every fused kernel takes every shape: a form that fails is no form.
        found = fastest([_trial(form, part, causal) for form in forms.values()], setup)
        _chosen[key] = forms[found[0].name] if found else None
    return _chosen[key]


def _trial(form: Form, part: tuple[Tensor, Tensor, Tensor], causal: bool) -> Contestant:
    q, k, v = part
    return Contestant(form.name, per_layer(lambda layer: form.attend(q, k[layer], v[layer], causal), len(k)))


def decode_baselines(bundle: Bundle, q: Tensor, setup: Setup) -> list[Contestant]:
    """Dense attention of ``q [B, Hq, D]`` over a bundle's tokens, by all that is there."""
    dense, shape = Dense.of(bundle, setup), bundle.shape
    found = sdpa(shape, q[:, :, None], dense.keys, dense.values, setup)
    if dense.pages is None:
        return [_cpp(bundle, q, dense), *found]
    table = (pages_of(bundle) - 1).int().to(setup.device).expand(bundle.batch, -1).contiguous()
    paged = (shape, q, dense.pages, table, setup)
    return [*found, *_triton(*paged), *_flashinfer(*paged), *_fa3(*paged)]


def _cpp(bundle: Bundle, q: Tensor, dense: Dense) -> Contestant:
    from leankv_kernels.cpu.extension import _cpu

    shape, threads = bundle.shape, torch.get_num_threads()

    def call(layer: int) -> Tensor:
        out = torch.empty(q.shape)
        _cpu.dense_decode(q, dense.keys[layer], dense.values[layer], out, scale=shape.scale, threads=threads)
        return out

    return Contestant("C++ dense", per_layer(call, len(dense.keys)))


def _triton(shape: Shape, q: Tensor, pages: tuple[Tensor, Tensor], table: Tensor, setup: Setup) -> list[Contestant]:
    from bench.kernels.dense_triton import Launch, dense_decode, launches

    keys, values = pages

    def call(launch: Launch, layer: int) -> Tensor:
        return dense_decode(q, keys[layer], values[layer], table, shape.scale, launch)

    def forms() -> Iterator[Contestant]:
        for launch in launches(setup.device):
            yield Contestant(f"Triton {launch}", per_layer(partial(call, launch), len(keys)))

    return [replace(c, name="Triton") for c in fastest(list(forms()), setup)]


def _flashinfer(shape: Shape, q: Tensor, pages: tuple[Tensor, Tensor], table: Tensor, setup: Setup) -> list[Contestant]:
    try:
        import flashinfer  # type: ignore[import-not-found]
    except ImportError:
        setup.note("FlashInfer is not installed: left out")
        return []
    batch, count = table.shape
    keys, values = pages
    indptr = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * count
    last = torch.full((batch,), PAGE, dtype=torch.int32, device=q.device)

    def call(run: Callable[..., Tensor], layer: int) -> Tensor:
        return run(q, (keys[layer], values[layer]))

    forms: list[Contestant] = []
    for tensor_cores in (False, True):
        name = f"FlashInfer {'tensor' if tensor_cores else 'CUDA'} cores"
        try:
            workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores)
            wrapper.plan(
                *(indptr, table.flatten(), last, shape.query_heads, shape.kv_heads, shape.head_dim, PAGE),
                q_data_type=torch.bfloat16,
                kv_data_type=torch.bfloat16,
            )
        except Exception as error:
            setup.note(f"{name} does not take {shape.name}: {str(error).splitlines()[0] if str(error) else error!r}")
            continue
        forms.append(Contestant(name, per_layer(partial(call, wrapper.run), len(keys))))
    return [replace(c, name="FlashInfer") for c in fastest(forms, setup)]


def flash_attention_3() -> Callable[..., Tensor] | None:
    """FlashAttention 3 over paged caches, of its own package or of SGLang's kernels; None without them."""
    for module in ("flash_attn_interface", "sgl_kernel.flash_attn"):
        try:
            found: Callable[..., Tensor] = importlib.import_module(module).flash_attn_with_kvcache
        except (ImportError, AttributeError):
            continue
        return found
    return None


def _fa3(shape: Shape, q: Tensor, pages: tuple[Tensor, Tensor], table: Tensor, setup: Setup) -> list[Contestant]:
    attend = flash_attention_3()
    if attend is None:
        setup.note("FlashAttention 3 is not installed: left out")
        return []
    keys, values = pages
    lengths = torch.full((len(table),), table.shape[1] * PAGE, dtype=torch.int32, device=q.device)

    def call(layer: int) -> Tensor:
        where = {"cache_seqlens": lengths, "page_table": table}
        return attend(q[:, None], keys[layer], values[layer], softmax_scale=shape.scale, **where)

    return fastest([Contestant("FA3", per_layer(call, len(keys)))], setup)
