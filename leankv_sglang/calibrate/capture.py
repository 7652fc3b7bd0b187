"""What attention sees and how much it matters: queries, keys, values and outputs of every layer, and gradients.

The gradients are of the log-probability of tokens drawn from the model itself. Their mean square over draws is the
Fisher information, whose quadratic form is the KL that a small change of an output costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leankv_sglang.models.shape import full_layers
from leankv_sglang.offline.hf import FinalLogits, rule_of
from leankv_sglang.offline.raw_rows import Rule

SLICE = 256
"""Tokens whose logits are held at a time."""
_NAME = "leankv_calibration"


class Layer(NamedTuple):
    """One layer's attention over one window of text, float32, kept in main memory until its turn comes."""

    q: Tensor  # [Hq, T, D]
    k: Tensor  # [H, T, D], after RoPE
    v: Tensor  # [H, T, Dv]
    out: Tensor  # [Hq, T, Dv]
    grads: Tensor  # [S, Hq, T, Dv], one for each draw
    scale: float
    cap: float = 0.0
    sinks: Tensor | None = None  # [Hq]

    def to(self, device: torch.device) -> Layer:
        """The same on a device."""
        q, k, v, out, grads = (x.to(device) for x in (self.q, self.k, self.v, self.out, self.grads))
        sinks = None if self.sinks is None else self.sinks.to(device)
        return Layer(q, k, v, out, grads, self.scale, self.cap, sinks)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled and capped scores ``[..., n, T]`` of queries ``[..., n, D]`` and keys ``[..., T, D]``."""
        return Rule(self.scale, self.cap).capped((q * self.scale) @ k.transpose(-2, -1))


def capture(model: Any, ids: Tensor, draws: int, skip: int, seed: int) -> list[Layer]:
    """Run a window of text forward once and backward ``draws`` times; layers with a sliding window stay as they are,
    and are not among those returned.

    Args:
        model: a Hugging Face causal model in float32; its attention implementation is left as it was.
        ids: int64 ``[T]``.
        draws: samples of next tokens.
        skip: first tokens whose predictions do not count.
        seed: of the draws.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[tuple[Tensor, Tensor, Tensor, Tensor, Rule]] = []
    full = set(full_layers(config := model.config.to_dict()))

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, scaling: float, **more: Any
    ) -> tuple[Tensor, None]:
        rule = rule_of(scaling, more)
        if module.layer_idx not in full:
            return _attend(q, k, v, rule).transpose(1, 2), None
        out = _attend(q, k, v, rule := rule._replace(window=None))
        out.retain_grad()
        seen.append((q[0].detach(), k[0].detach(), v[0].detach(), out, rule))
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
    slopes = _slopes(model.lm_head.weight, hidden.detach()[0, skip:-1], draws, seed, FinalLogits.of(config))
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
        Layer(q, k, v, out.detach()[0], torch.stack(kept), rule.scale, rule.cap, rule.sinks).to(torch.device("cpu"))
        for (q, k, v, out, rule), kept in zip(seen, grads, strict=True)
    ]


def _attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Causal attention ``[1, Hq, T, Dv]``."""
    if rule.window is None and not rule.cap and rule.sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=rule.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    # Weights of all heads are made anew for every backward pass: kept, they would take more than all else.
    out: Tensor = checkpoint(_weigh, q, k, v, rule, use_reentrant=False)
    return out


def _weigh(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    group, position = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    back = position[:, None] - position
    unseen = back < 0 if rule.window is None else (back < 0) | (back >= rule.window)
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = rule.capped((q * rule.scale) @ keys.transpose(2, 3)).masked_fill(unseen, float("-inf"))
    return rule.weights(scores) @ values


def _slopes(head: Tensor, hidden: Tensor, draws: int, seed: int, final: FinalLogits) -> Tensor:
    """Gradients ``[S, n, C]`` of the log-probability of drawn tokens by outputs ``[n, C]``."""
    generator = torch.Generator(hidden.device).manual_seed(seed)
    out = hidden.new_empty(draws, *hidden.shape)
    for start in range(0, len(hidden), SLICE):
        span = slice(start, start + SLICE)
        logits = final(hidden[span] @ head.T)
        probability, steep = logits.softmax(-1), final.slope(logits)
        mean = (probability * steep) @ head
        drawn = torch.multinomial(probability, draws, replacement=True, generator=generator)
        out[:, span] = head[drawn.T] * steep.gather(1, drawn).T[..., None] - mean
    return out
