"""A hook registry of a test's own."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[str]], None]:
    """Call it with what will be hooked: that is put back after the test, in every module that holds it."""

    def begin(targets: Iterable[str]) -> None:
        monkeypatch.setattr(HookRegistry, "_hooks", HookRegistry._hooks.__class__(list))
        monkeypatch.setattr(HookRegistry, "_patched", set())
        for target in targets:
            where, _, name = target.rpartition(".")
            holder = pkgutil.resolve_name(where)
            original = inspect.getattr_static(holder, name)
            monkeypatch.setattr(holder, name, original)
            for module in [m for m in sys.modules.values() if vars(m).get(name) is original and m is not holder]:
                monkeypatch.setattr(module, name, original)

    return begin
