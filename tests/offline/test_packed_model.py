"""The packed runner gives every sequence what it has alone, in whatever pieces it comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.quality.systems import cache_of, system
from leankv_kernels.layout import LEVEL_FAR
from leankv_sglang.offline.lean_cache import LeanCache
from leankv_sglang.offline.packed import PackedModel
from leankv_sglang.offline.raw_cache import RawCache
from leankv_sglang.offline.raw_rows import Rule
from tests.tiny_models import DEVICES, PAGE, VOCABULARY, tiny_llama, tiny_packed, tokens

SYSTEMS = (None, "balanced", "a_h 1, a_l 0.3 (pruned)", "all k4v2")


@pytest.fixture(scope="module", params=DEVICES)
def model(request: pytest.FixtureRequest) -> PackedModel:
    return tiny_packed(device=request.param)


def open_cache(model: PackedModel, name: str | None) -> Any:
    return cache_of(model, system(name) if name else None, PAGE, 6, 2048)


def alone(model: PackedModel, name: str | None, ids: list[int]) -> Tensor:
    cache = open_cache(model, name)
    return model.prefill(cache, [(cache.new(len(ids)), ids)])[0]


def close(a: Tensor, b: Tensor) -> None:
    """Equal but for the last bits that 16-bit matrix products of other shapes may differ in."""
    assert a.shape == b.shape
    assert torch.nn.functional.cosine_similarity(a.float(), b.float()).min() > 0.999
    torch.testing.assert_close(a.float(), b.float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_chunks_and_decode_steps_equal_one_prefill(model: PackedModel, name: str | None) -> None:
    ids = tokens(300, 1)
    whole = alone(model, name, ids)
    cache = open_cache(model, name)
    state = cache.new(300)
    parts = [model.prefill(cache, [(state, ids[:250])], chunk=90)[0]]
    parts += [model.extend(cache, [(state, [token])]) for token in ids[250:]]
    assert state.length == 300
    close(torch.cat(parts), whole)


def test_in_float32_only_the_codec_is_left() -> None:
    """Without bfloat16's own noise each finer form is nearer to the exact cache, and eight bits are nearly there."""
    model = PackedModel(tiny_llama(VOCABULARY, 3, 6, 0.2), "tiny", torch.float16)
    ids = tokens(400, 1)
    exact = alone(model, None, ids)
    off = [
        float((alone(model, name, ids) - exact).norm() / exact.norm()) for name in ("all k8v8", "all k8v4", "all k4v2")
    ]
    assert exact.dtype == torch.float32
    assert off[0] < 0.25 * off[1]
    assert off[1] < 0.5 * off[2]


@pytest.mark.parametrize("name", SYSTEMS)
def test_neighbours_change_nothing(model: PackedModel, name: str | None) -> None:
    prompts = [tokens(length, length) for length in (150, 1, 64, 130)]
    cache = open_cache(model, name)
    states = [cache.new(200) for _ in prompts]
    outs = model.prefill(cache, list(zip(states, prompts, strict=True)), chunk=128)
    steps = [model.extend(cache, [(state, [7 + i]) for state in states]) for i in range(3)]
    for i, prompt in enumerate(prompts):
        whole = alone(model, name, [*prompt, 7, 8, 9])
        close(torch.cat([outs[i], *(step[i : i + 1] for step in steps)]), whole)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("length", [128, 150])
def test_forks_continue_what_they_were_made_of(model: PackedModel, name: str | None, length: int) -> None:
    """Two questions about one context, and the context's own continuation, each as if it had been asked alone."""
    context, questions = tokens(length, 2), [tokens(40, 3), tokens(70, 4)]
    cache = open_cache(model, name)
    base = cache.new(300)
    model.prefill(cache, [(base, context)])
    forks = [cache.fork(base, 300) for _ in questions]
    cache.context_bytes(base)  # cuts what nobody reads near any more
    asked = [*zip(forks, questions, strict=True), (base, tokens(50, 5))]
    outs = model.prefill(cache, asked)
    for (_, question), out in zip(asked, outs, strict=True):
        close(out, alone(model, name, context + question)[length:])
    for state, _ in asked:
        cache.free(state)
    if isinstance(cache, LeanCache):
        assert not cache.store.audit()
        assert cache.store.usage().records == 0


@pytest.mark.parametrize("name", SYSTEMS[1:])
def test_attention_is_bit_equal_in_any_pieces(model: PackedModel, name: str) -> None:
    """The cache alone, on the same inputs: no matrix product of the model's lies between."""
    random = torch.Generator().manual_seed(6)
    q = torch.randn(200, 6, 32, generator=random).bfloat16().to(model.device)
    k, v = (torch.randn(200, 2, 32, generator=random).bfloat16().to(model.device) for _ in range(2))

    def attend(cuts: list[int]) -> Tensor:
        cache, outs = open_cache(model, name), []
        state = cache.new(200)
        for a, b in zip([0, *cuts], [*cuts, 200], strict=True):
            cache.begin([(state, b - a)])
            outs.append(cache.attend(0, q[a:b], k[a:b], v[a:b], Rule(32**-0.5)))
            cache.end()
        return torch.cat(outs)

    whole = attend([])
    for cuts in ([64], [10, 11, 12, 130], [127, 128, 129]):
        assert torch.equal(attend(cuts), whole)


def test_raw_is_the_models_own_attention() -> None:
    """In float32: what bfloat16 rounds differently grows in a random model, on some CPUs beyond any bound."""
    model = PackedModel(tiny_llama(VOCABULARY, 3, 6, 0.2), "tiny", torch.float32)
    ids = tokens(200, 7)
    mine = alone(model, None, ids)
    name = model.model.config._attn_implementation
    model.model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            whole = model.model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    finally:
        model.model.set_attn_implementation(name)
    torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


def test_rows_that_decode_together_have_what_each_has_alone() -> None:
    """What a GPU takes: one call for all rows, over memory whose unwritten part may hold anything."""
    model = PackedModel(tiny_llama(VOCABULARY, 3, 6, 0.2), "tiny", torch.float32)
    prompts = [tokens(length, length) for length in (150, 1, 300)]
    outs = []
    for together in (False, True):
        cache = open_cache(model, None)
        assert isinstance(cache, RawCache)
        cache.together = together
        first = cache.new(200)
        some = torch.empty(1, 2, 32)
        for held in (part for layer in range(3) for part in cache.kept.of(layer, some, some)):
            held.fill_(float("nan"))
        cache.free(first)
        states = [cache.new(len(prompt) + 2) for prompt in prompts]
        model.prefill(cache, list(zip(states, prompts, strict=True)))
        model.extend(cache, [(state, [3]) for state in states])
        outs.append(model.extend(cache, [(state, [4]) for state in (states[2], states[0])]))
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "near_pages"), [("small", 1), ("small", 2), ("all k8v4", 1), ("balanced", 0)])
def test_bytes_are_those_of_trimmed_records(model: PackedModel, name: str, near_pages: int) -> None:
    cache = cache_of(model, system(name, near_pages=near_pages), PAGE, 2, 1024)
    assert isinstance(cache, LeanCache)
    state = cache.new(600)
    model.prefill(cache, [(state, tokens(5 * PAGE + 9, 8))])
    pages = torch.tensor(state.pages[:5], device=model.device)
    expected = cache.ops.count_pages(cache.store, pages)
    blocks = int(expected[: 5 - near_pages, LEVEL_FAR - 1].sum() + expected[5 - near_pages :, 2].sum())
    held = cache.context_bytes(state)
    assert cache.store.usage().blocks == blocks
    scores = 3 * 6 * PAGE * 4  # of the open page: layers, query heads, int32
    assert held == blocks * cache.layout.block_bytes + 4 * 3 * 5 + PAGE * model.shape.token_bytes + scores
    open_page = sum(
        kept[:, 0].nbytes for kept in (cache.open_pages.key, cache.open_pages.value, cache.open_pages.scores)
    )
    assert open_page == PAGE * model.shape.token_bytes + scores
    assert cache.context_bytes(state) == held
    assert not cache.store.audit()
