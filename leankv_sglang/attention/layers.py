"""Attention layers as SGLang calls them: which are covered, and their tensors by heads."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from torch import Tensor

from leankv_sglang.errors import LeanKVError


def check_layer(
    layer: RadixAttention,
    context: int,
    windowed: bool = False,
    kept: int | None = None,
    dims: tuple[int, int] | None = None,
) -> None:
    """Raise :class:`LeanKVError` for an attention layer that is not covered.

    Args:
        layer: of the model as it was built.
        context: tokens of a sequence at most; a window of as many does not slide.
        windowed: whether its keys are in the pool of sliding windows.
        kept: tokens before the last one that SGLang keeps there; None where it does not say.
        dims: channels of the keys and values that pages hold, to compare with those of a layer without a window.
    """
    reason, window = None, layer.sliding_window_size
    slides = window is not None and -1 < window < context - 1
    if layer.is_cross_attention or layer.attn_type not in (AttentionType.DECODER, None):
        reason = "it has attention that is not causal self-attention"
    elif slides and not windowed:
        reason = f"its layer {layer.layer_id} has a sliding window, which SGLang's configuration of it does not say"
    elif windowed and not slides:
        reason = f"its layer {layer.layer_id} has no sliding window, though SGLang's configuration of it says so"
    elif windowed and kept is not None and window > kept:
        reason = f"its layer {layer.layer_id} looks {window} tokens back, and SGLang keeps {kept} of its windows"
    elif layer.logit_cap and layer.logit_capping_method not in (None, "tanh"):
        reason = f"its attention logits are capped by {layer.logit_capping_method}"
    elif dims not in (None, found := (layer.qk_head_dim, layer.v_head_dim)) and not windowed:
        reason = (
            f"its layer {layer.layer_id} has keys and values of {found[0]} and {found[1]} channels, and SGLang's "
            f"configuration of it says {dims[0]} and {dims[1]}"
        )
    if reason:
        raise LeanKVError(f"LeanKV cannot serve this model: {reason}.")


def by_heads(
    q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, tokens: int, save: bool, extra: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[T, Hq, Dk]``, keys ``[T, H, Dk]`` and values ``[T, H, Dv]`` of a call, without rows of padding.

    Args:
        q, k, v: as SGLang hands them over.
        layer: that is called.
        tokens: T.
        save: whether the layer writes its own keys and values.
        extra: what else it is given; none of it is known.

    Raises:
        LeanKVError: for a call that cannot be served.
    """
    if k is None or v is None or not save:
        raise LeanKVError("LeanKV cannot serve this model: a layer attends without writing its own KV.")
    if any(value is not None for value in extra.values()):
        raise LeanKVError(f"LeanKV cannot serve this model: its attention takes {', '.join(extra)}.")
    return (
        q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)[:tokens],
        k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)[:tokens],
        v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)[:tokens],
    )


def by_rows(out: Tensor, q: Tensor, layer: RadixAttention) -> Tensor:
    """An output ``[T, Hq, D]`` as SGLang takes it: a row a token, and zeros for rows of padding."""
    rows, flat = q.numel() // (layer.tp_q_head_num * layer.qk_head_dim), out.flatten(1)
    return flat if rows == len(flat) else torch.cat([flat, flat.new_zeros(rows - len(flat), flat.shape[1])])
