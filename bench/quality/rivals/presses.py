"""kvpress's presses, at the compression ratios that its authors report, alone and over a 4-bit cache."""

from __future__ import annotations

from typing import Any

from .common import Profile

RATIOS = (0.25, 0.5, 0.75)
"""Shares of the context's tokens (per head) that are removed."""

MASKING = ("AdaKV", "KVzip")
"""Presses that choose per head and, in kvpress, mask what they drop: the memory stays taken."""

_INT4 = {"backend": "quanto", "nbits": 4}


def press_profiles() -> list[Profile]:
    """Query-agnostic presses; KVzap, FastKVzip and Q-Filters need trained weights that no package carries."""
    names = ("Expected Attention", "AdaKV", "KVzip", "SnapKV", "Knorm", "StreamingLLM")
    found = [_profile(name, ratio) for name in names for ratio in RATIOS]
    stacked = ("Expected Attention", "AdaKV", "KVzip")
    return found + [_profile(name, ratio, _INT4) for name in stacked for ratio in RATIOS]


def _profile(name: str, ratio: float, cache: dict[str, Any] | None = None) -> Profile:
    note = "masks per head: ratio_if_freed is what freeing would give" if name in MASKING else ""
    setting: dict[str, Any] = {"press": name, "ratio": ratio}
    title = f"{name} {ratio:.0%}"
    if cache:
        setting["cache"] = cache
        title += f" + {cache['backend']} {cache['nbits']}"
    return Profile("kvpress", title, note, setting)


def make_press(setting: dict[str, Any]) -> Any:
    """The press of a setting."""
    import kvpress

    name, ratio = setting["press"], setting["ratio"]
    if name == "AdaKV":
        return kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio))
    kinds = {
        "Expected Attention": kvpress.ExpectedAttentionPress,
        "KVzip": kvpress.KVzipPress,
        "SnapKV": kvpress.SnapKVPress,
        "Knorm": kvpress.KnormPress,
        "StreamingLLM": kvpress.StreamingLLMPress,
    }
    return kinds[name](ratio)


def replays(press: Any) -> bool:
    """Whether the press scores the context by running the model over it again, not by a hook on each layer."""
    import kvpress

    return isinstance(press, kvpress.KVzipPress)


def masked_fraction(model: Any, context: int) -> float:
    """The share of the context's entries, over layers and heads, that attention is told to skip."""
    indices = [getattr(layer.self_attn, "masked_key_indices", None) for layer in model.model.layers]
    masked = sum(len(index[0]) for index in indices if index is not None)
    return masked / (len(indices) * model.config.num_key_value_heads * context)
