"""Which attention layers are covered, and which numbers of their heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leankv_sglang.attention.layers import check_layer
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from tests.attention.backendutil import make_layer, make_runner

HEADS, KV_HEADS, DIM, CONTEXT = 6, 2, 64, 4096


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("is_cross_attention", True, "not causal self-attention"),
        ("sliding_window_size", 128, "layer 0 has a sliding window, which SGLang's configuration of it does not say"),
        ("v_head_dim", 32, "layer 0 has keys and values of 64 and 32 channels, and SGLang's .* says 64 and 64"),
    ],
)
def test_layers_outside_the_read_rule_are_refused(field: str, value: Any, why: str) -> None:
    layer = make_layer(HEADS, KV_HEADS, DIM)
    check_layer(layer, CONTEXT, dims=(DIM, DIM))
    setattr(layer, field, value)
    with pytest.raises(LeanKVError, match=why):
        check_layer(layer, CONTEXT, dims=(DIM, DIM))


def test_a_layer_is_what_the_configuration_says_it_is() -> None:
    """In either direction, for a window kept as a full layer would read nothing that has left the window pool."""
    layer = make_layer(HEADS, KV_HEADS, DIM)
    with pytest.raises(LeanKVError, match="layer 0 has no sliding window, though"):
        check_layer(layer, CONTEXT, windowed=True)
    layer.sliding_window_size = CONTEXT - 1  # does not slide
    check_layer(layer, CONTEXT)
    layer.sliding_window_size = CONTEXT - 2
    check_layer(layer, CONTEXT, windowed=True)
    layer.logit_cap, layer.logit_capping_method = 30.0, "tanh"
    check_layer(layer, CONTEXT, windowed=True)
    check_layer(layer, CONTEXT, windowed=True, kept=CONTEXT - 2)
    with pytest.raises(LeanKVError, match=f"looks {CONTEXT - 2} tokens back, and SGLang keeps 5"):
        check_layer(layer, CONTEXT, windowed=True, kept=5)
    layer.logit_capping_method = "another"
    with pytest.raises(LeanKVError, match="logits are capped by another"):
        check_layer(layer, CONTEXT, windowed=True)


def test_kernels_that_do_not_take_the_query_heads_are_refused_before_any_forward(configure) -> None:  # type: ignore[no-untyped-def]
    """Which is when the pool hears of them, in a server whose start was not asked before."""
    configure(LeanKVConfig(kernels="cuda-emulated"))
    sizes = {"kv_heads": 1, "head_dim": 64, "page_size": 64, "batch_size": 1, "max_len": 64, "dtype": torch.bfloat16}
    with pytest.raises(LeanKVError, match=r"no kernels to serve with: .* not 17: use the triton backend"):
        make_runner(heads=17, **sizes)
    assert make_runner(heads=34, **sizes).leankv.compressor.ops.name == "cuda-emulated"
