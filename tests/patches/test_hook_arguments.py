"""A hooked function may be called with its arguments in order or by name: every hook takes them either way."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from sglang.srt.managers import schedule_batch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from leankv_patches import (
    choice_seeds,
    control_waits,
    drain,
    logging_fields,
    meta_info,
    openai_metadata,
    quiet_children,
    request_fields,
    start_failure,
)
from leankv_sglang.plugin.patches import scheduler_patches

BEFORE_THEM = {HookType.BEFORE: 0, HookType.AFTER: 1, HookType.AROUND: 1}
"""Arguments of a hook that come before its target's."""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Callable[..., Any], HookType]]:
    """Everything that is hooked, of which nothing takes effect."""
    found: list[tuple[str, Callable[..., Any], HookType]] = []
    monkeypatch.setattr(HookRegistry, "register", lambda target, hook, kind: found.append((target, hook, kind)))
    monkeypatch.setattr(schedule_batch, "re", schedule_batch.re)
    for patch, arguments in scheduler_patches():
        patch.install(*arguments)
    for patch, arguments in ((choice_seeds, ()), (request_fields, ()), (meta_info, ("a",)), (openai_metadata, ("a",))):
        patch.install(*arguments)
    quiet_children.install()
    control_waits.install()
    logging_fields.install()
    drain.install(1.0)
    start_failure.install_launcher(lambda *_: None)
    return found


def test_hooks_take_what_their_targets_take(registered: list[tuple[str, Callable[..., Any], HookType]]) -> None:
    assert len(registered) > 30
    for target, hook, kind in registered:
        function = inspect.unwrap(pkgutil.resolve_name(target))
        stated = inspect.signature(getattr(function, "__func__", function)).parameters
        names, by_name = list(stated), [name for name, p in stated.items() if p.kind is p.KEYWORD_ONLY]
        leading = [object()] * BEFORE_THEM[kind]
        own = names[:1] if names[:1] in (["self"], ["cls"]) else []
        rest = names[len(own) :]
        takes = inspect.signature(hook)
        try:
            takes.bind(*leading, *own, *[n for n in rest if n not in by_name], **dict.fromkeys(by_name))
            takes.bind(*leading, *own, **dict.fromkeys(rest))
        except TypeError as error:
            pytest.fail(f"{target}: {error}")
