"""Matrix products of a model on a CPU: a row's bits do not depend on its company, and no CPU is left to slow loops."""

from __future__ import annotations

from typing import Any

import torch

from leankv_kernels import get_ops
from leankv_patches import single_row


def cover_products(model: Any, dtype: torch.dtype) -> str | None:
    """Have torch's products of this process replaced where a model on the CPU needs it.

    A CPU without AVX-512 BF16 gets our kernel for layers of 16 bits, since torch's own loops take five times as long
    and oneDNN's give a row other bits in other company. Models with experts have products that no layer makes.

    Args:
        model: a ``torch.nn.Module``.
        dtype: of its weights.

    Returns:
        A sentence if products go elsewhere then than to ours.
    """
    ops = get_ops(torch.device("cpu"))
    # Portable code would not be faster than torch.
    ours = ops.name == "cpu" and ops.variant != "portable" and single_row.torch_takes(dtype)
    if not ours and not single_row.has_experts(model):
        return None
    single_row.replace_products(ops.linear if ours else None)
    return single_row.elsewhere()
