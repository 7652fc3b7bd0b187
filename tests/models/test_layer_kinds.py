"""Which layers live in pages and which slide, by SGLang's model configuration and by a ``config.json`` alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leankv_sglang.models.layer_kinds import compressed_layers, window_split, window_token_bytes
from leankv_sglang.models.shape import CacheShape, ModelShape, WindowShape, shape_of, windows_of
from leankv_sglang.plan import window_rows

SLIDING, FULL = "sliding_attention", "full_attention"
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "sliding_window": 512,
    "layer_types": [SLIDING, SLIDING, FULL] * 2,
}


def _model(**changes: Any) -> SimpleNamespace:
    """Sglang's ModelConfig of such a configuration, before windows are looked for."""
    config = SimpleNamespace(**(CONFIG | changes))
    return SimpleNamespace(
        hf_config=config,
        hf_text_config=config,
        is_hybrid_swa=False,
        context_len=4096,
        num_hidden_layers=6,
        swa_head_dim=64,
        swa_v_head_dim=64,
        dtype=torch.bfloat16,
        get_swa_num_kv_heads=lambda ranks: 2 // ranks,
    )


def test_layers_are_told_apart() -> None:
    assert window_split(_model()) == ([0, 1, 3, 4], [2, 5])


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["Phi3ForCausalLM"]},
        {"architectures": None},
        {"layer_types": None},
        {"layer_types": [FULL] * 6},
        {"sliding_window": None},
        {"sliding_window": 4096},
    ],
    ids=str,
)
def test_what_never_slides_is_all_full(changes: dict[str, Any]) -> None:
    """No code for windows, none there, or as wide as the context."""
    assert window_split(_model(**changes)) is None


def test_sglangs_own_answer_stays() -> None:
    model = _model()
    model.is_hybrid_swa = True
    assert window_split(model) is None


def test_bytes_of_windows() -> None:
    model = _model()
    assert (compressed_layers(model), window_token_bytes(model, 1)) == (6, 0)
    model.is_hybrid_swa, model.full_attention_layer_ids = True, [2, 5]
    assert (compressed_layers(model), window_token_bytes(model, 2)) == (2, 4 * 1 * 128 * 2)


def test_a_shape_is_of_what_grows() -> None:
    assert shape_of(CONFIG) == ModelShape(2, 4, 2, 64)
    assert windows_of(CONFIG) == WindowShape(4, 512)
    assert shape_of({"architectures": CONFIG["architectures"], "text_config": CONFIG}) == ModelShape(2, 4, 2, 64)
    assert windows_of(CONFIG | {"architectures": ["MistralForCausalLM"]}) is None
    for odd in ({"architectures": 7}, {"num_hidden_layers": "6"}, {"layer_types": 7}):
        assert windows_of(CONFIG | odd) is None
    with pytest.raises(ValueError, match="layers without a sliding window"):
        shape_of(CONFIG | {"layer_types": [SLIDING] * 6})


def test_a_shape_has_the_widths_of_keys_and_of_values() -> None:
    """By MiMo-V2, whose windows also have heads of their own."""
    own = {"hybrid_layer_pattern": [1, 1, 0, 1, 1, 0], "sliding_window_size": 128, "swa_num_key_value_heads": 4}
    own |= {"swa_head_dim": 64, "swa_v_head_dim": 16, "v_head_dim": 32}
    mimo = CONFIG | own | {"architectures": ["MiMoV2FlashForCausalLM"]}
    shape, windows = shape_of(mimo), windows_of(mimo)
    assert shape == ModelShape(2, 4, 2, 64, 32)
    assert shape.token_bytes == 2 * 2 * 2 * (64 + 32)
    assert shape.cache == CacheShape(2, 2, 64, 32) != CacheShape(2, 2, 64)
    assert "64 (values 32)" in shape.describe()
    assert windows is not None
    assert (windows.layers, windows.tokens, windows.token_bytes(shape)) == (4, 128, 2 * 4 * 4 * (64 + 16))
    assert shape_of(CONFIG | {"v_head_dim": 64}) == shape_of(CONFIG | {"v_head_dim": None}) == ModelShape(2, 4, 2, 64)
    assert "values" not in shape_of(CONFIG).describe()
    with pytest.raises(ValueError, match="v_head_dim"):
        shape_of(CONFIG | {"v_head_dim": "32"})


def test_what_a_request_takes_by_its_length() -> None:
    """A window stops growing, so that the share of full layers nears all of it."""
    shape, windows = ModelShape(2, 4, 2, 64), WindowShape(4, 512)
    rows = window_rows(shape, windows, shape.token_bytes / 4)
    assert [row["windows, MiB"] for row in rows] == [512 * 4 * 512 / 2**20] * 3
    assert [row["their share, %"] for row in rows] == [
        pytest.approx(100 * n / (n + 1024)) for n in (4096, 32768, 131072)
    ]
    assert rows[0]["x 16 bits, windows included"] == pytest.approx((4096 + 1024) / (1024 + 1024))
