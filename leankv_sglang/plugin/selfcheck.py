"""SGLang logs and swallows what a plugin raises, so each process proves that every seam took effect."""

from __future__ import annotations

from typing import Any

from leankv_patches import SGLANG_VERSION
from leankv_sglang.config import NAME
from leankv_sglang.errors import LeanKVError


def check_version() -> None:
    """Raise :class:`LeanKVError` unless the installed sglang is the release the seams were read from."""
    import sglang

    if sglang.__version__ != SGLANG_VERSION:
        raise LeanKVError(
            f"LeanKV works with sglang {SGLANG_VERSION}, not {sglang.__version__}; install sglang=={SGLANG_VERSION}."
        )


def _problems() -> list[str]:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.mem_cache.registry import get_radix_cache_factory

    from leankv_sglang.plugin.patches import scheduler_patches

    problems = [problem for patch, _ in scheduler_patches() if (problem := patch.problem())]
    if get_radix_cache_factory(NAME) is None:
        problems.append(f"the radix cache {NAME} is not registered")
    if NAME not in ATTENTION_BACKENDS:
        problems.append(f"the attention backend {NAME} is not registered")
    return problems


def stop_if(problems: list[str]) -> None:
    """Raise :class:`LeanKVError` naming the seams that failed, if any did."""
    if problems:
        raise LeanKVError(
            f"LeanKV does not reach into this sglang as it must ({'; '.join(problems)}); "
            f"see the log above, and install sglang=={SGLANG_VERSION} as docs/quickstart.md says."
        )


def check_launcher() -> None:
    """For the launching process, after ``load_plugins()``.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    check_version()
    stop_if(_problems())


def check_process(pool: Any, allocator: Any) -> None:
    """For a scheduler process, once its pool and allocator exist; before the attention backend is built.

    Raises:
        LeanKVError: one sentence naming every seam that failed.
    """
    from leankv_sglang.kvcache.allocator import LeanKVAllocator
    from leankv_sglang.kvcache.hybrid import compressed_pool
    from leankv_sglang.kvcache.pool import LeanKVPool

    check_version()
    problems = _problems()
    pool, allocator = compressed_pool(pool), getattr(allocator, "full_attn_allocator", allocator)
    if not isinstance(pool, LeanKVPool):
        problems.append(f"the KV pool is {type(pool).__name__}")
    if not isinstance(allocator, LeanKVAllocator):
        problems.append(f"the allocator is {type(allocator).__name__}")
    stop_if(problems)
