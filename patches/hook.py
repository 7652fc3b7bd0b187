"""What every patch that hooks a function of sglang does alike: register the hook, and tell whether it took."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any


def register(target: str, hook: Callable[..., Any], kind: str) -> None:
    """Have ``hook`` run ``BEFORE``, ``AFTER`` or ``AROUND`` the function that ``target`` names in full."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(target, hook, HookType[kind])


def is_hooked(target: str) -> bool:
    """Whether hooks of ``target`` have been applied."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return target in HookRegistry._patched


def problem(target: str, what: str, parameters: list[str] | None = None, name: str | None = None) -> str | None:
    """A sentence if a hook did not take or its target changed its arguments, else None.

    Args:
        target: the function's full name.
        what: what is hooked there, in words.
        parameters: names of the target's parameters, where the hook depends on them.
        name: how to call the function; by default with its class, if it has one.
    """
    owner, function = target.split(".")[-2:]
    name = name or (f"{owner}.{function}" if owner[0].isupper() else function)
    if not is_hooked(target):
        return f"{what} ({name}) could not be hooked"
    if parameters is not None:
        found = list(inspect.signature(inspect.unwrap(pkgutil.resolve_name(target))).parameters)
        if found != parameters:
            return f"{name} takes {found} now"
    return None


def first_problem(targets: Mapping[str, list[str] | None], what: str) -> str | None:
    """The first :func:`problem` of several hooks that do one thing: functions' full names with their parameters."""
    found = (problem(target, what, parameters) for target, parameters in targets.items())
    return next((sentence for sentence in found if sentence), None)
