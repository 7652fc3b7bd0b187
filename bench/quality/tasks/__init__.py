"""The tasks, one module each: ``name`` and ``run(bench, limits, seed) -> rows``."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from bench.quality.harness import Task

TASKS = ("text", "needle", "ruler", "gsm8k", "chat", "babilong", "humaneval", "code")


def task(name: str) -> Task:
    """The task of a name in ``TASKS``."""
    return cast(Task, import_module(f"bench.quality.tasks.{name}"))
