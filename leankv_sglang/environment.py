"""What has to be settled in a process, and left to its children, before sglang is imported."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.handover import leave
from leankv_sglang.noise import UNDER_LEANKV, quiet

ROW_STABLE_ISA, WITHOUT_BF16 = "AVX512_CORE_FP16", "AVX2"
"""The highest instruction sets up to which 16-bit products do not depend on the number of rows: on a CPU with AVX-512
BF16, and on one that has to emulate it, where those of oneDNN do and torch takes its own up to AVX2 (measured)."""

APP_PATH_ENV = "SGLANG_HTTP_SERVER_APP_PATH"
"""Names the HTTP app that tokenizer workers import."""
APP_PATH = "leankv_sglang.server.http_app:app"


DRAIN_ENV, DEFAULT_DRAIN_SECONDS = "LEANKV_DRAIN_SECONDS", 30.0
"""How long requests may go on once the server was told to end."""


def has_accelerator() -> bool:
    """Whether torch sees a GPU of any kind."""
    import torch

    return torch.accelerator.is_available()


def unshadow_kernels() -> None:
    """Let ``import kernels`` find the Hugging Face package, not our folder, when started from the checkout's root.

    ``python -m`` puts the current folder first on the path; a checkout's root moves to its end. Child processes
    inherit the order.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / "kernels" / "layout").is_dir():
        here = [p for p in sys.path if Path(p or ".").resolve() == root]
        sys.path[:] = [p for p in sys.path if p not in here] + here


def row_stable_isa() -> str:
    """The highest instruction set that oneDNN may use on this CPU if a row is to have the same bits in any company."""
    import torch

    return ROW_STABLE_ISA if torch.cpu._is_avx512_bf16_supported() else WITHOUT_BF16


def keep_rows_alike() -> None:
    """Have a row of a matrix product get the same bits whatever rows are beside it, which oneDNN's AMX kernels and its
    emulation of bfloat16 do not give it, nor oneMKL in float32; before the first product of the process, and inherited
    by its children.

    Without it a hit, whose prompt is cut elsewhere, equals a miss but for rounding. What the environment says of
    ``ONEDNN_MAX_CPU_ISA`` (``DEFAULT`` keeps AMX) and ``MKL_CBWR`` stays.
    """
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", row_stable_isa())
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def prepare_cpu() -> None:
    """Make sglang importable and sane on a machine without an accelerator; before sglang is imported, idempotent."""
    from leankv_patches import cpu_imports

    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    # Spinning OpenMP threads of several processes cost ten times under contention. Read when libgomp loads, so it
    # reaches the scheduler, which is a child process.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # oneDNN keeps the kernels of the last 1,024 shapes of products and torch keeps their descriptors, together 0.6 MiB
    # a shape, and every length of a prompt is one; so many have the batches of decode, which come again.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "256")
    # After a crash SGLang sleeps 65 seconds for dumps of what runs on GPUs, and its clients hang.
    for dump in ("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "SGLANG_PYSPY_DUMP_BEFORE_CRASH"):
        os.environ.setdefault(dump, "0")
    noise = "ignore:Only CUDA,ignore:Triton is not supported"
    given = os.environ.get("PYTHONWARNINGS", "")
    if noise not in given:
        os.environ["PYTHONWARNINGS"] = f"{given},{noise}" if given else noise
    for message in ("Only CUDA", "Triton is not supported"):
        warnings.filterwarnings("ignore", message=message)
    cpu_imports.install()


def prepare_environment(config: LeanKVConfig) -> None:
    """Set what sglang and its child processes read from the environment; before sglang is imported."""
    unshadow_kernels()
    quiet(UNDER_LEANKV)
    os.environ[CONFIG_ENV] = leave(config.to_json())
    # The pool is sized once, at start.
    os.environ["SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"] = "0"
    if not has_accelerator():
        keep_rows_alike()
        prepare_cpu()
