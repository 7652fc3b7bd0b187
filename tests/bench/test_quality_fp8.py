"""SGLang's 8-bit cache as the quality bench imitates it."""

from __future__ import annotations

import pytest
import torch

from bench.quality.fp8 import DTYPES, Fp8Cache
from bench.quality.systems import cache_of, system
from leankv_sglang.offline.packed import PackedModel
from leankv_sglang.offline.raw_rows import Rule
from tests.tiny_models import tiny_packed


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return tiny_packed()


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_are_stored_as_float8_and_saturate(name: str, model: PackedModel) -> None:
    cache = cache_of(model, system(name), 128, 1, 16)
    assert isinstance(cache, Fp8Cache)
    state = cache.new(16)
    shape = (4, model.shape.kv_heads, model.shape.head_dim)
    key, value = torch.randn(shape).to(model.cache_dtype), torch.full(shape, 1e6).to(model.cache_dtype)
    query = torch.randn(4, model.shape.query_heads, model.shape.head_dim).to(model.cache_dtype)
    cache.begin([(state, 4)])
    out = cache.attend(0, query, key, value, Rule(0.1))
    cache.end()
    most = torch.finfo(DTYPES[name]).max
    assert torch.equal(out, torch.full_like(out, most))
    held = [rows[state.row, :, :4] for rows in cache.kept.layers[0]]
    assert torch.equal(held[0], key.to(DTYPES[name]).to(key.dtype).transpose(0, 1))
    assert not torch.equal(held[0], key.transpose(0, 1))
    assert cache.context_bytes(state) == 2 * 4 * model.shape.layers * model.shape.kv_heads * model.shape.head_dim


def test_other_systems_have_none() -> None:
    assert system("all k4v2").fp8 == ""
    assert len({system(name).digest for name in (*DTYPES, "all k4v2")}) == 3
