"""What attention sees and how much it matters: queries, keys, values and outputs of every layer, and gradients.

The gradients are of the log-probability of tokens drawn from the model itself. Their mean square over draws is the
Fisher information, whose quadratic form is the KL that a small change of an output costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SLICE = 256
"""Tokens whose logits are held at a time."""
_NAME = "leankv_calibration"


class Layer(NamedTuple):
    """One layer's attention over one window, float32, kept in main memory until its turn comes."""

    q: Tensor  # [Hq, T, D]
    k: Tensor  # [H, T, D], after RoPE
    v: Tensor  # [H, T, D]
    out: Tensor  # [Hq, T, D]
    grads: Tensor  # [S, Hq, T, D], one for each draw
    scale: float

    def to(self, device: torch.device) -> Layer:
        """The same on a device."""
        q, k, v, out, grads, scale = self
        return Layer(q.to(device), k.to(device), v.to(device), out.to(device), grads.to(device), scale)


def capture(model: Any, ids: Tensor, draws: int, skip: int, seed: int) -> list[Layer]:
    """Run a window forward once and backward ``draws`` times.

    Args:
        model: a Hugging Face causal model in float32; its attention implementation is left as it was.
        ids: int64 ``[T]``.
        draws: samples of next tokens.
        skip: first tokens whose predictions do not count.
        seed: of the draws.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[tuple[Tensor, Tensor, Tensor, Tensor, float]] = []

    def attend(
        _module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, scaling: float, **_kwargs: Any
    ) -> tuple[Tensor, None]:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        out.retain_grad()
        seen.append((q[0].detach(), k[0].detach(), v[0].detach(), out, scaling))
        return out.transpose(1, 2), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_NAME, attend)
    model.set_attn_implementation(_NAME)
    model.requires_grad_(False)
    try:
        embedded = model.get_input_embeddings()(ids.to(model.device)[None]).detach().requires_grad_(True)
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    finally:
        model.set_attn_implementation(before)
    slopes = _slopes(model.lm_head.weight, hidden.detach()[0, skip:-1], draws, seed)
    grads: list[list[Tensor]] = [[] for _ in seen]
    for i, slope in enumerate(slopes):
        upstream = torch.zeros_like(hidden)
        upstream[0, skip:-1] = slope
        for layer in seen:
            layer[3].grad = None
        hidden.backward(upstream, retain_graph=i < draws - 1)
        for kept, layer in zip(grads, seen, strict=True):
            assert layer[3].grad is not None
            kept.append(layer[3].grad[0].to("cpu", copy=True))
    return [
        Layer(q.cpu(), k.cpu(), v.cpu(), out.detach()[0].cpu(), torch.stack(kept), scale)
        for (q, k, v, out, scale), kept in zip(seen, grads, strict=True)
    ]


def _slopes(head: Tensor, hidden: Tensor, draws: int, seed: int) -> Tensor:
    """Gradients ``[S, n, C]`` of the log-probability of drawn tokens by outputs ``[n, C]``."""
    generator = torch.Generator(hidden.device).manual_seed(seed)
    out = hidden.new_empty(draws, *hidden.shape)
    for start in range(0, len(hidden), SLICE):
        span = slice(start, start + SLICE)
        probability = (hidden[span] @ head.T).softmax(-1)
        mean = probability @ head
        drawn = torch.multinomial(probability, draws, replacement=True, generator=generator)
        out[:, span] = head[drawn.T] - mean
    return out
