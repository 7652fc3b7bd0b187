"""The parts of a calibration: windows, options, gradients, estimated costs, the fit of the predictor, the search."""

from __future__ import annotations

import copy
import sys
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, TIERS, RecordLayout
from leankv_kernels.reference.tiers import choose_tiers, features
from leankv_sglang.calibrate.capture import Layer, capture
from leankv_sglang.calibrate.fit import fit, harm
from leankv_sglang.calibrate.measure import Measured
from leankv_sglang.calibrate.options import Option, options
from leankv_sglang.calibrate.search import ADDS_UP, Found, Space, Target, search
from leankv_sglang.calibrate.sensitivity import full_pages, layer_costs
from leankv_sglang.calibrate.windows import calibration_windows, default_text
from leankv_sglang.compression.significance import Predictor
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from tests.tiny_models import tiny_llama

PAGE = 64
CONFIG = LeanKVConfig(mid="k4v4")


def layout(head_dim: int = 32) -> RecordLayout:
    return RecordLayout(PAGE, 2, head_dim, TIERS["k8v4"], TIERS["k4v2"], mid=TIERS["k4v4"])


@pytest.fixture(scope="module")
def model() -> Any:
    """2 layers, 4 query heads."""
    return tiny_llama(97, 2, 4, gain=0.2)


@pytest.fixture(scope="module")
def seen(model: Any) -> list[Layer]:
    ids = torch.randint(97, (4 * PAGE + 20,), generator=torch.Generator().manual_seed(1))
    return capture(model, ids, draws=4, skip=PAGE, seed=0)


# Windows


def _tokenizer(text: str, return_tensors: str) -> Any:
    return SimpleNamespace(input_ids=torch.tensor([[ord(c) for c in text]]))


def test_windows_take_turns_and_every_second_one_recalls() -> None:
    rng = Random(0)
    text = "".join(rng.choice("abcdefghij") for _ in range(5000))
    windows = calibration_windows(_tokenizer, [text, text.upper()], 6, 64)
    assert [len(w) for w in windows] == [64] * 6
    for i, window in enumerate(windows):
        assert ("".join(map(chr, window.tolist()))).isupper() == (i // 2 % 2 == 1)
        assert torch.equal(window[:24], window[-24:]) == (i % 2 == 1)
    assert all(map(torch.equal, windows, calibration_windows(_tokenizer, [text, text.upper()], 6, 64)))
    with pytest.raises(LeanKVError, match="has 100 tokens; calibrate on at least 128"):
        calibration_windows(_tokenizer, ["x" * 100], 1, 64)


def test_there_is_a_text_to_begin_with() -> None:
    assert len(default_text()) > 300_000


# Options


@pytest.mark.parametrize("mid", [True, False])
def test_options_are_shares(mid: bool) -> None:
    found = options(mid)
    assert len(set(found)) == len(found)
    assert all(min(o) >= 0 and sum(o) <= 1 + 1e-9 for o in found)
    assert {Option(1.0, 0.0, 0.0), Option(0.0, 0.0, 1.0), Option(0.0, 0.0, 0.0)} <= set(found)
    assert mid == any(o.mid for o in found)
    assert options(mid, prune=False) == [o for o in found if sum(o) == 1]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(options(True)))
def test_thresholds_give_the_tiers_of_the_shares(seed: int, option: Option) -> None:
    worth = torch.rand(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square() * 3 + 1e-3
    alphas = torch.tensor(option.alphas(worth), dtype=torch.float64)[:, None]
    by_threshold = choose_tiers(worth[None, None], alphas, torch.tensor([1]))[0, 0]
    by_rank = option.tiers(worth)
    assert (by_threshold != by_rank).sum() <= 4
    shares = [float((by_rank == tier).double().mean()) for tier in (HIGH, MID, LOW, PRUNED)]
    assert shares == pytest.approx([*option, 1 - sum(option)], abs=0.005)


def test_bytes_of_an_option() -> None:
    for option, want in ((Option(1, 0, 0), 8 + 32 + 16), (Option(0, 1, 0), 8 + 16 + 16), (Option(0, 0, 0.5), 16.0)):
        assert option.token_bytes(layout()) == want


# Gradients and costs


def _kl_of_a_change(model: Any, ids: Tensor, at: int, change: Tensor) -> float:
    """True KL, summed over predictions from PAGE on, when the attention output of a layer moves by ``change``."""

    def moved(module: Any, args: Any) -> Any:
        return (args[0] + change,)

    logits = [model(ids[None]).logits[0, PAGE:-1].log_softmax(-1)]
    hook = model.model.layers[at].self_attn.o_proj.register_forward_pre_hook(moved)
    logits.append(model(ids[None]).logits[0, PAGE:-1].log_softmax(-1))
    hook.remove()
    return float((logits[0].exp() * (logits[0] - logits[1])).sum())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_estimates_what_a_cpu_does(model: Any, seen: list[Layer]) -> None:
    worth: dict[str, Tensor] = {}
    costs = {}
    for device in ("cpu", "cuda"):
        layer = seen[1].to(torch.device(device))
        pages = full_pages(layer, PAGE)
        weights = fit([layer], [pages], 1)
        strategy = Predictor(weights[None])
        worth[device] = strategy(0, pages).transpose(0, 1).flatten(1)
        costs[device] = layer_costs(layer, worth["cpu"].to(device), options(True), CONFIG, layout(), PAGE).cpu()
    torch.testing.assert_close(worth["cuda"].cpu().log(), worth["cpu"].log(), rtol=0, atol=0.05)
    torch.testing.assert_close(costs["cuda"], costs["cpu"], rtol=0.02, atol=1e-9)
    ids = torch.randint(97, (4 * PAGE + 20,), generator=torch.Generator().manual_seed(1))
    there = capture(copy.deepcopy(model).to("cuda"), ids, draws=4, skip=PAGE, seed=0)
    for ours, theirs in zip(there, seen, strict=True):
        torch.testing.assert_close(ours.out, theirs.out, rtol=1e-3, atol=1e-3)
        # Other draws of the same distribution.
        assert float(ours.grads.square().mean() / theirs.grads.square().mean()) == pytest.approx(1, rel=0.5)


def test_gradients_tell_the_kl_of_a_small_change(model: Any) -> None:
    """Half the mean square of the slope along a change is its KL."""
    ids = torch.randint(97, (3 * PAGE,), generator=torch.Generator().manual_seed(5))
    seen = capture(model, ids, draws=64, skip=PAGE, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for at in (0, 1):
            change = torch.zeros(1, len(ids), 128)
            change[0, 100, :32] = torch.randn(32, generator=generator) * 0.02
            slope = (seen[at].grads[:, 0, 100] * change[0, 100, :32]).sum(-1)
            estimate = 0.5 * float(slope.square().mean())
            assert estimate == pytest.approx(_kl_of_a_change(model, ids, at, change), rel=0.5)


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before = model.config._attn_implementation
    capture(model, torch.arange(80), draws=1, skip=8, seed=0)
    assert model.config._attn_implementation == before


def test_costs_rise_as_less_is_kept(seen: list[Layer]) -> None:
    found = [Option(1, 0, 0), Option(0, 1, 0), Option(0, 0, 1), Option(0, 0, 0.5), Option(0, 0, 0)]
    for layer in seen:
        worth = torch.rand(2, 4 * PAGE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        cost = layer_costs(layer, worth, found, CONFIG, layout(), skip=PAGE)
        assert cost.shape == (2, 5)
        assert bool((cost.sum(0).diff() > 0).all())
        # Eight-bit keys and four-bit values cost next to nothing beside dropping everything.
        assert bool((cost[:, 0] < 0.05 * cost[:, -1]).all())


def test_pruning_what_matters_least_costs_least(seen: list[Layer]) -> None:
    half = [Option(0, 0, 0.5)]
    for layer in seen:
        cost = harm(layer, CONFIG.near_pages, PAGE)[:, : 4 * PAGE].nan_to_num()
        best, worst = (layer_costs(layer, worth, half, CONFIG, layout(), PAGE).sum() for worth in (cost, -cost))
        assert best < 0.5 * worst


def test_harm_is_of_far_queries_alone(seen: list[Layer]) -> None:
    cost = harm(seen[0], near_pages=1, page=PAGE)
    assert bool(cost[:, : 2 * PAGE].isfinite().all())
    # The pages that only the window and their own page's queries read.
    assert bool(cost[:, 3 * PAGE + 20 :].isnan().all())
    assert bool((cost.nan_to_num() >= 0).all())


def test_the_fit_finds_a_predictor_that_is_there(seen: list[Layer]) -> None:
    """Where harm is what a predictor says, the fit predicts it; and it beats chance on real harm."""
    weights = fit(seen[:1], [full_pages(seen[0], PAGE)], CONFIG.near_pages)
    pages = full_pages(seen[0], PAGE)
    said = Predictor(weights[None])(0, pages).transpose(0, 1).flatten(1).log()
    true = harm(seen[0], CONFIG.near_pages, PAGE)[:, : 4 * PAGE]
    known = ~true[0].isnan()
    for head in range(2):
        pair = torch.stack([said[head, known], (true[head, known] + 1e-12).log()])
        assert torch.corrcoef(pair)[0, 1] > 0.5
    assert weights.shape == (2, features(pages).shape[-1])
    assert torch.equal(weights, weights.half().double())


# Search


def _space() -> Space:
    generator = torch.Generator().manual_seed(0)
    found = options(True)
    nbytes = torch.tensor([o.token_bytes(layout()) for o in found])
    cost = torch.rand(3, 2, 1, generator=generator) * (-nbytes / 6).exp()
    return Space(found, cost.double(), torch.rand(3, 2, 200, generator=generator, dtype=torch.float64), layout())


def test_what_hardly_varies_has_no_weight(seen: list[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's constant feature had one beyond half precision, in a profile that no server read."""
    module = sys.modules[fit.__module__]
    own = module.features

    def nearly_constant(page: Any) -> Tensor:
        found: Tensor = own(page).clone()
        found[..., 3] = 5 + 1e-7 * found[..., 3]
        return found

    monkeypatch.setattr(module, "features", nearly_constant)
    weights = fit(seen[:1], [full_pages(seen[0], PAGE)], CONFIG.near_pages)
    assert bool(weights.isfinite().all())
    assert bool((weights[:, 3] == 0).all())
    assert bool((weights[:, :3] != 0).all())


def test_a_choice_is_the_cheapest_at_its_price() -> None:
    space = _space()
    free, dear = space.choose(0.0), space.choose(1e6)
    assert space.estimated(free) == pytest.approx(float(space.cost.amin(-1).sum()))
    assert space.bytes_of(dear) == 0
    middle = space.choose(space.first_price(Target("kl", kl=0.5 / ADDS_UP)))
    assert space.estimated(middle) <= 0.5 < space.estimated(dear)


@pytest.mark.parametrize("target", [0.01, 0.1, 0.7])
def test_a_search_ends_just_inside_its_target(target: float) -> None:
    space = _space()

    def measure(alphas: Any) -> Measured:
        # As if all that is estimated were three times as bad.
        choice = next(c for c, a in asked if a == alphas)
        return Measured(3 * space.estimated(choice), 0.0, 100 / (1 + space.bytes_of(choice)))

    asked: list[tuple[Tensor, Any]] = []

    class Watched(Space):
        def alphas(self, choice: Tensor) -> Any:
            asked.append((choice, super().alphas(choice)))
            return asked[-1][1]

    watched = Watched(space.options, space.cost, space.significance, space.layout)
    steps: list[Found] = []

    def report(_: Target, found: Found) -> None:
        steps.append(found)

    by_kl = search(watched, Target("by_kl", kl=target), measure, report)
    assert by_kl.measured.kl <= target
    assert by_kl.measured.ratio == max(s.measured.ratio for s in steps if s.measured.kl <= target)
    ratio = by_kl.measured.ratio
    steps.clear()
    by_ratio = search(watched, Target("by_ratio", ratio=ratio), measure, report)
    assert by_ratio.measured.ratio >= ratio
    assert by_ratio.measured.kl == min(s.measured.kl for s in steps if s.measured.ratio >= ratio)


def test_a_target_out_of_reach_gives_the_nearest() -> None:
    space = _space()
    found = search(space, Target("far", kl=0.5), lambda _: Measured(1.0, 0.0, 2.0), lambda *_: None)
    assert found.measured.kl == 1.0
