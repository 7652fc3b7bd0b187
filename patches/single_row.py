"""Targets: torch's matrix products on a CPU (``aten::mm`` and ``aten::addmm``, which ``F.linear``, ``torch.matmul`` and
``nn.Linear`` end in), and ``UnquantizedLinearMethod.apply`` of sglang 0.5.23.

Reason: the libraries below take other paths, with another order of summation, for few rows, so a token's bits would
depend on its company: decode of a lone request is a single row, prefill of the same token one of many. That is so of
linear layers, and as much of what SGLang runs past them: the lm_head, an expert that a lone token goes to, and routers,
which are often float32. Measured for 2,048 inputs: 16 bits, a lone row has other bits in 1 of 15 (128 outputs) to 1 of
3 rows (2,048), two and more never; float32, one, two or three rows have other bits in every row, and so have the last
rows of a number that is no multiple of four, where outputs are few those of the last columns too. So a lone row of 16
bits runs as two, and float32 in whole blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from leankv_patches import hook

TARGET = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"
ROWS, COLUMNS = 4, 16
"""Of both a float32 product has a multiple. With them the library measured (oneMKL 2024.0; one to three threads) gave
a row the same bits in 22 numbers of rows and 14 shapes; another library may need more."""
_SHORT = (torch.bfloat16, torch.float16)
_library: torch.library.Library | None = None


def two_rows(original: Callable[..., Tensor], method: Any, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``original`` with a lone row of a CPU tensor ``[1, K]`` run as two, of which the first is returned.

    Its products are covered below; this is for weights that a library of SGLang's own has packed.
    """
    if x.dim() == 2 and x.shape[0] == 1 and x.device.type == "cpu":
        return original(method, layer, x.expand(2, -1).contiguous(), *args, **kwargs)[:1]
    return original(method, layer, x, *args, **kwargs)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices ``[M, K]`` and ``[K, N]``, where the bits of a row depend on that row and ``b`` alone."""
    rows, columns = a.shape[0], b.shape[1]
    if a.dtype != torch.float32 or not a.numel() or not b.numel():
        lone = rows == 1 and a.dtype in _SHORT
        return _mm(a.expand(2, -1).contiguous(), b)[:1] if lone else _mm(a, b)
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
    if a.dtype == torch.float32 and a.numel() and b.numel():
        scaled = product(a, b)
        return (scaled if alpha == 1 else scaled * alpha) + (bias if beta == 1 else bias * beta)
    if rows == 1 and a.dtype in _SHORT:
        return _addmm(bias, a.expand(2, -1).contiguous(), b, beta, alpha)[:1]
    return _addmm(bias, a, b, beta, alpha)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """As torch has it: what writes into a given tensor is not replaced."""
    return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))  # type: ignore[no-any-return]


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.ops.aten.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=out)  # type: ignore[no-any-return]


def replace_products() -> None:
    """Have torch take these products on a CPU, in this process; idempotent."""
    global _library
    if _library is None:
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # That a kernel of torch is overridden.
            warnings.simplefilter("ignore")
            _library.impl("mm", product, "CPU")
            _library.impl("addmm", product_and_sum, "CPU")


def restore_products() -> None:
    """Give torch its own products back."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def install() -> None:
    """Register the hook, and replace the products where there is no accelerator. Call while sglang loads plugins."""
    hook.register(TARGET, two_rows, "AROUND")
    if not torch.accelerator.is_available():
        replace_products()


def problem() -> str | None:
    """A sentence if the hook did not take, or a product ends elsewhere than in ours, else None."""
    return hook.problem(TARGET, "linear layers") or (None if torch.accelerator.is_available() else _uneven())


def _uneven() -> str | None:
    """Whether a lone row has other bits than as it runs here; no library is asked for more, so none is refused."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 2048, generator=draw), torch.randn(128, 2048, generator=draw)
    x[1:] = 0
    if not torch.equal(torch.nn.functional.linear(x[:1], weight), torch.nn.functional.linear(x, weight)[:1]):
        return "torch's own product of a lone row is in use"
    return None
