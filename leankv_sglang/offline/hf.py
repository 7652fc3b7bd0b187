"""What models of Hugging Face do around attention and behind their last layer, read from their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from leankv_sglang.models.shape import text_part
from leankv_sglang.offline.raw_rows import Rule


def rule_of(scaling: float, more: Mapping[str, Any]) -> Rule:
    """How a layer attends, from what it hands to transformers' attention interface beside tensors."""
    return Rule(scaling, more.get("softcap") or 0.0, more.get("s_aux"), more.get("sliding_window"))


class FinalLogits(NamedTuple):
    """What becomes of the products of the last layer's outputs with the head."""

    factor: float = 1.0
    cap: float = 0.0
    """Logits z are ``cap * tanh(z / cap)``; 0 for none."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FinalLogits:
        """By a configuration: Cohere's and Granite's factors, Gemma's cap."""
        text = text_part(config)
        factor = (text.get("logit_scale") or 1.0) / (text.get("logits_scaling") or 1.0)
        return cls(factor, text.get("final_logit_softcapping") or 0.0)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits as the model gives them, in their own dtype."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def slope(self, logits: Tensor) -> Tensor:
        """Derivative of what was made, ``logits``, by what it was made of."""
        steep = 1 - (logits / self.cap).square() if self.cap else logits.new_ones(logits.shape)
        return steep * self.factor
