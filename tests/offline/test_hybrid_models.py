"""Models with sliding windows, caps, sinks, experts, factors on their logits: what transformers says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.quality.systems import cache_of, system
from leankv_sglang.offline.packed import PackedModel
from tests.models_served import MODELS
from tests.tiny_models import PAGE, tokens

NAMES = {
    "gemma2": 3,
    "gemma3": 2,
    "cohere2": 2,
    "olmo3": 2,
    "granite-swa": 2,
    "mimo-v2": 2,
    "vaultgemma": 2,
    "qwen3-moe": 4,
    "granite": 4,
}
"""With how many layers without a window."""
LENGTHS = 230, 40, 150
"""Tokens of sequences; windows are of 96."""
FAR = 0.1
"""How far eight bits may move the logits of a random model; another window, cap or sink moves them by 0.4 and more."""


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    return name, MODELS[name].build(tmp_path_factory.mktemp(name)).truth


def _load(path: Path, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how).eval()


@pytest.fixture(scope="module")
def truth(folder: tuple[str, Path]) -> list[Tensor]:
    """Logits of every sequence, alone."""
    model = _load(folder[1], attn_implementation="eager")
    with torch.inference_mode():
        return [model(torch.tensor([tokens(length, length)]), use_cache=False).logits[0] for length in LENGTHS]


def _logits(model: PackedModel, cache: Any, together: bool = False) -> list[Tensor]:
    """Of all sequences at once, in chunks, the last tokens one by one."""
    cache.together = together
    asked = [tokens(length, length) for length in LENGTHS]
    states = [cache.new(length) for length in LENGTHS]
    outs = model.prefill(cache, [(s, ids[:-3]) for s, ids in zip(states, asked, strict=True)], chunk=100)
    for i in range(-3, 0):
        step = model.extend(cache, [(s, [ids[i]]) for s, ids in zip(states, asked, strict=True)])
        outs = [torch.cat(pair) for pair in zip(outs, step.split(1), strict=True)]
    return [model.logits(out) for out in outs]


@pytest.mark.parametrize("together", [False, True])
def test_the_exact_cache_is_transformers_own(folder: tuple[str, Path], truth: list[Tensor], together: bool) -> None:
    model = PackedModel(_load(folder[1]), folder[0], torch.float32)
    assert model.shape.layers == len(model.layers) == NAMES[folder[0]]
    for mine, theirs in zip(_logits(model, cache_of(model, None, PAGE, 3, 600), together), truth, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


def test_our_cache_is_nearly_that_and_forks_keep_windows(folder: tuple[str, Path], truth: list[Tensor]) -> None:
    model = PackedModel(_load(folder[1]), folder[0], torch.float16)
    cache = cache_of(model, system("all k8v8"), PAGE, 5, 1500)
    for mine, theirs in zip(_logits(model, cache), truth, strict=True):
        assert (mine - theirs).norm() < FAR * theirs.norm()
    assert cache.store.num_layers == NAMES[folder[0]]
    ids = tokens(LENGTHS[0], LENGTHS[0])
    base = cache.new(400)
    model.prefill(cache, [(base, ids[:170])])
    fork = cache.fork(base, 400)
    model.prefill(cache, [(base, tokens(60, 9))])
    out = model.logits(model.prefill(cache, [(fork, ids[170:])])[0])
    assert (out - truth[0][170:]).norm() < FAR * truth[0][170:].norm()
