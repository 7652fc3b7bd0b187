"""Every patch takes on the pinned sglang, says so when it does not, and LeanKV then refuses to start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from types import SimpleNamespace

import pytest
import sglang
import torch
from sglang.srt.distributed.device_communicators import pynccl_wrapper
from sglang.srt.managers.scheduler_components.invariant_checker import SchedulerInvariantChecker as Checker
from sglang.srt.managers.scheduler_components.pool_stats_observer import SchedulerPoolStatsObserver
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator
from sglang.srt.plugins.hook_registry import HookRegistry

from leankv_patches import (
    SGLANG_VERSION,
    cell_size,
    cpu_imports,
    internal_state,
    nccl_choice,
    pool_budget,
    private_pages,
)
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin import selfcheck

COUNT = "_get_total_uncached_sizes"


@pytest.fixture
def hooks(own_registry: Callable[[Iterable[str]], None]) -> None:
    targets = (patch.TARGET for patch in (cell_size, internal_state, nccl_choice, private_pages))
    own_registry([*targets, private_pages.SESSIONS])


def test_the_pinned_release_is_installed() -> None:
    assert sglang.__version__ == SGLANG_VERSION
    selfcheck.check_version()


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "__version__", "0.5.99")
    with pytest.raises(LeanKVError, match=r"works with sglang 0\.5\.23, not 0\.5\.99"):
        selfcheck.check_version()


def test_a_token_is_priced_by_us(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cell_size.problem() is not None

    def upstream(self: object, kvc: SimpleNamespace, num_layers: int) -> int:
        return 1

    monkeypatch.setattr(DefaultPoolConfigurator, "_compute_cell_size", upstream)
    cell_size.install(lambda kvc, layers: kvc.price * layers)
    HookRegistry.apply_hooks()
    assert cell_size.problem() is None
    assert DefaultPoolConfigurator._compute_cell_size(SimpleNamespace(), SimpleNamespace(price=7), 3) == 21


def test_the_pool_gets_what_is_left(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def upstream(self: object, budget_bytes: int, *, cap_tokens: int | None = None) -> tuple[int, int | None]:
        return budget_bytes, cap_tokens

    monkeypatch.setattr(KVCacheConfigurator, "config_from_budget", upstream)
    pool_budget.install(lambda kvc, budget: budget - kvc.fixed)
    HookRegistry.apply_hooks()
    assert pool_budget.problem() is None
    assert KVCacheConfigurator.config_from_budget(SimpleNamespace(fixed=3), 10, cap_tokens=2) == (7, 2)


def test_a_target_with_other_arguments_is_a_problem(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefaultPoolConfigurator, "_compute_cell_size", lambda self, context: 1)
    cell_size.install(lambda kvc, layers: 1)
    HookRegistry.apply_hooks()
    assert "takes ['self', 'context'] now" in (cell_size.problem() or "")


def test_server_info_hook(hooks: None) -> None:
    assert internal_state.problem() is not None
    internal_state.install(lambda scheduler: {"of": scheduler})
    HookRegistry.apply_hooks()
    assert internal_state.problem() is None


@pytest.mark.parametrize("gpu", [False, True])
def test_nccl_is_for_machines_with_a_gpu(gpu: bool, hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nccl_choice.problem() is not None
    monkeypatch.setattr(pynccl_wrapper, "find_nccl_library", lambda: "libnccl.so.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    nccl_choice.install()
    HookRegistry.apply_hooks()
    assert nccl_choice.problem() is None
    if gpu:
        assert pynccl_wrapper.find_nccl_library() == "libnccl.so.2"
    else:
        with pytest.raises(ValueError, match="no GPU"):
            pynccl_wrapper.find_nccl_library()


def test_a_missing_seam_stops_the_start(hooks: None) -> None:
    with pytest.raises(LeanKVError, match=r"price of a token.*server info"):
        selfcheck.check_launcher()


def test_a_foreign_pool_stops_the_scheduler() -> None:
    with pytest.raises(LeanKVError, match="the KV pool is SimpleNamespace; the allocator is SimpleNamespace"):
        selfcheck.check_process(SimpleNamespace(), SimpleNamespace())


def test_placeholders_import_but_do_not_run() -> None:
    if hasattr(sys.modules.get("sgl_kernel"), "__file__"):
        pytest.skip("a real sgl_kernel is installed")
    cpu_imports.install()
    assert cpu_imports.problem() is None
    import sgl_kernel
    from torchvision.transforms import InterpolationMode

    assert InterpolationMode.BICUBIC.value == "bicubic"
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.rmsnorm needs the package sgl_kernel"):
        sgl_kernel.rmsnorm(1)
    with pytest.raises(AttributeError):
        _ = sgl_kernel.__version__


def test_installed_packages_win_over_placeholders() -> None:
    cpu_imports.install()
    ours = next(finder for finder in sys.meta_path if type(finder).__module__ == cpu_imports.__name__)
    assert sys.meta_path.index(ours) > sys.meta_path.index(PathFinder)
    assert ours.find_spec("sgl_kernel", None) is not None
    assert ours.find_spec("torch", None) is None


def test_private_pages_are_counted_at_their_prices(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows of pages of 4: what the tree owns is left out, the page being written counts whole."""
    assert private_pages.problem() is not None
    monkeypatch.setattr(Checker, COUNT, lambda self: (77, 0))
    private_pages.install()
    HookRegistry.apply_hooks()
    assert private_pages.problem() is None
    price = torch.tensor([0, 4, 3, 2, 1, 4]).numpy()
    rows = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    owners = [
        SimpleNamespace(kv=SimpleNamespace(req_pool_idx=0, cache_protected_len=4, kv_allocated_len=10)),
        SimpleNamespace(kv=SimpleNamespace(req_pool_idx=1, cache_protected_len=0, kv_allocated_len=3)),
    ]
    checker = SimpleNamespace(
        page_size=4,
        token_to_kv_pool_allocator=SimpleNamespace(ledger=SimpleNamespace(price=price)),
        req_to_token_pool=SimpleNamespace(req_to_token=rows),
        _requests_owning_rows=lambda: owners,
    )
    # Pages 2 and 3 of the first row, page 5 of the second.
    assert getattr(Checker, COUNT)(checker) == (3 + 2 + 4, 0)
    checker.token_to_kv_pool_allocator = SimpleNamespace()
    assert getattr(Checker, COUNT)(checker) == (77, 0)


def test_pages_of_sessions_are_counted_at_their_prices(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SchedulerPoolStatsObserver, "session_held_tokens", lambda self: 77)
    private_pages.install()
    HookRegistry.apply_hooks()
    price = torch.tensor([0, 4, 3, 2]).numpy()
    record = SimpleNamespace(req_pool_idx=0, cache_protected_len=4, kv_allocated_len=10)
    observer = SimpleNamespace(
        tree_cache=SimpleNamespace(page_size=4),
        token_to_kv_pool_allocator=SimpleNamespace(ledger=SimpleNamespace(price=price)),
        req_to_token_pool=SimpleNamespace(req_to_token=torch.arange(4, 16, dtype=torch.int32)[None]),
        _session_kv_rows=lambda: [record],
    )
    assert SchedulerPoolStatsObserver.session_held_tokens(observer) == 3 + 2
    observer.token_to_kv_pool_allocator = SimpleNamespace()
    assert SchedulerPoolStatsObserver.session_held_tokens(observer) == 77
