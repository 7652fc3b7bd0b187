"""Targets: ``UnquantizedLinearMethod.apply`` and ``LogitsProcessor._compute_lm_head`` of sglang 0.5.23, on CPU; for
models with experts, and where a kernel for 16 bits is given, also torch's matrix products there (``aten::mm`` and
``aten::addmm``, in which all others end).

Reason: the libraries below take other paths, with another order of summation, for few rows, so a token's bits would
depend on its company: decode of a lone request is a single row, prefill of the same token one of many. Measured for
2,048 inputs on a CPU with AVX-512 BF16: 16 bits, a lone row has other bits in 1 of 15 (128 outputs) to 1 of 3 rows
(2,048), two and more never; float32, one, two or three rows have other bits in every row, and so have the last rows of
a number that is no multiple of four, where outputs are few those of the last columns too. So where oneDNN takes
products of 16 bits a lone row runs as two (torch's own, on a CPU without BF16, need it not), and float32 runs in whole
blocks, besides what ``MKL_CBWR`` asks of oneMKL. An expert to which a lone token goes and routers, which are often
float32, are products that no layer of SGLang's makes. To replace those costs each product 5 us, which models without
experts need not pay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from leankv_patches import hook

TARGET = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"
LM_HEAD = "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head"
ROWS, COLUMNS = 4, 16
"""Of both a float32 product has a multiple. With them oneMKL 2024 gave a row the same bits in 22 numbers of rows and 14
shapes on a CPU with AVX-512 BF16, and on one without it where ``MKL_CBWR`` is strict (which alone was enough there)."""
_mm_out: Any = torch.ops.aten.mm.out
_addmm_out = torch.ops.aten.addmm.out
_library: torch.library.Library | None = None
Linear = Callable[[Tensor, Tensor], Tensor]
_linear: Linear | None = None


@cache
def lone_rows_differ(dtype: torch.dtype) -> bool:
    """Whether a lone row of a 16-bit product on this CPU may have other bits than one of two: where oneDNN takes it."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def torch_takes(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are torch's own loops on this CPU, without oneDNN and oneMKL."""
    return dtype in (torch.bfloat16, torch.float16) and not lone_rows_differ(dtype)


def two_rows(original: Callable[..., Tensor], method: Any, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``original`` with a lone row of a CPU tensor ``[1, K]`` run as two, of which the first is returned, where one
    alone has other bits."""
    if x.dim() == 2 and x.shape[0] == 1 and x.device.type == "cpu" and lone_rows_differ(x.dtype):
        return original(method, layer, x.expand(2, -1).contiguous(), *args, **kwargs)[:1]
    return original(method, layer, x, *args, **kwargs)


def whole_rows(original: Callable[..., Tensor], processor: Any, hidden_states: Tensor, *args: Any, **kw: Any) -> Tensor:
    """``original``, which makes logits ``[M, vocabulary]`` of states ``[M, K]``, with as many rows more as it takes."""
    rows = hidden_states.shape[0]
    if hidden_states.device.type != "cpu" or not rows:
        return original(processor, hidden_states, *args, **kw)
    # What is asked for in float32 is made of 16-bit states.
    more = -rows % ROWS if processor.use_fp32_lm_head else int(rows == 1 and lone_rows_differ(hidden_states.dtype))
    if not more:
        return original(processor, hidden_states, *args, **kw)
    return original(processor, pad(hidden_states, (0, 0, 0, more)), *args, **kw)[:rows]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices ``[M, K]`` and ``[K, N]``, where the bits of a row depend on that row and ``b`` alone."""
    rows, columns = a.shape[0], b.shape[1]
    if (layer := _of_layer(a, b)) is not None:
        return layer.to(a.dtype)
    if a.dtype is not torch.float32:
        lone = rows == 1 and lone_rows_differ(a.dtype)
        return _mm(a.expand(2, -1).contiguous(), b)[:1] if lone else _mm(a, b)
    if not a.numel() or not b.numel():
        return _mm(a, b)
    if rows % ROWS:
        a = pad(a, (0, 0, 0, -rows % ROWS))
    whole = columns // COLUMNS * COLUMNS
    if whole == columns:
        return _mm(a, b)[:rows]
    last = _mm(a, pad(b[:, whole:], (0, COLUMNS - columns % COLUMNS)))[:rows, : columns - whole]
    return torch.cat([_mm(a, b[:, :whole])[:rows], last], 1) if whole else last.contiguous()


def product_and_sum(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * bias + alpha * (a @ b)``, likewise."""
    rows = a.shape[0]
    if (layer := _of_layer(a, b)) is not None:
        return torch.add(layer * alpha, bias.float(), alpha=beta).to(a.dtype)
    if a.dtype == torch.float32 and a.numel() and b.numel():
        scaled = product(a, b)
        return (scaled if alpha == 1 else scaled * alpha) + (bias if beta == 1 else bias * beta)
    if rows == 1 and lone_rows_differ(a.dtype):
        return _addmm(bias, a.expand(2, -1).contiguous(), b, beta, alpha)[:1]
    return _addmm(bias, a, b, beta, alpha)


def _of_layer(a: Tensor, b: Tensor) -> Tensor | None:
    """``a @ b`` in float32 by the kernel that was given, if it takes these: rows of 16 bits, weights as layers hold
    them."""
    if _linear is None or not torch_takes(a.dtype) or b.dtype != a.dtype or not b.t().is_contiguous():
        return None
    return _linear(a, b.t())


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """As torch has it: what writes into a given tensor is not replaced."""
    return _mm_out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))  # type: ignore[no-any-return]


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1])
    return _addmm_out(bias, a, b, beta=beta, alpha=alpha, out=out)  # type: ignore[no-any-return]


def replace_products(linear: Linear | None = None) -> None:
    """Have torch take these products on a CPU, in this process; idempotent.

    Args:
        linear: from rows ``[M, K]`` and weights ``[N, K]`` of 16 bits, float32 ``[M, N]`` in which a row's bits depend
            on that row and the weights alone; used where :func:`torch_takes` such products itself, a fifth as fast.
    """
    global _library, _linear
    _linear = linear or _linear
    if _library is None:
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # That a kernel of torch is overridden.
            warnings.simplefilter("ignore")
            _library.impl("mm", product, "CPU")
            _library.impl("addmm", product_and_sum, "CPU")


def restore_products() -> None:
    """Give torch its own products back."""
    global _library, _linear
    _linear = None
    if _library is not None:
        _library._destroy()
        _library = None


def has_experts(model: Any) -> bool:
    """Whether a model, a ``torch.nn.Module``, is a mixture of experts."""
    return any("moe" in type(module).__name__.lower() for module in model.modules())


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(TARGET, two_rows, "AROUND")
    hook.register(LM_HEAD, whole_rows, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or its target changed its arguments, else None."""
    parameters = ["self", "hidden_states", "lm_head", "embedding_bias", "out"]
    return hook.problem(TARGET, "linear layers") or hook.problem(LM_HEAD, "the lm_head", parameters)


def elsewhere() -> str | None:
    """A sentence if torch's linear layers of this process do not end in :func:`product`."""
    global _mm_out
    own, asked = _mm_out, []

    def watched(*args: Tensor, **out: Tensor) -> Any:
        asked.append(args)
        return own(*args, **out)

    _mm_out = watched
    try:
        torch.nn.functional.linear(torch.ones(1, 8), torch.ones(4, 8))
    finally:
        _mm_out = own
    return None if asked else "torch's own product of a lone row is in use"
