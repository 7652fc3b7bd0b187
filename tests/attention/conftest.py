"""The real attention backend and pool on SGLang's own attention-test runner, without a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention import attention_registry
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.test.kits.attention_unittest.attention_methods import dense_attention as kit

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.pool import LeanKVPool
from tests.attention.backendutil import create_backend

Configure = Callable[[LeanKVConfig], None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Have the kit build our pool and backend, under the configuration given."""

    def use(config: LeanKVConfig) -> None:
        monkeypatch.setenv(CONFIG_ENV, config.to_json())
        monkeypatch.setattr(kit, "MHATokenToKVPool", LeanKVPool)
        monkeypatch.setitem(attention_registry.ATTENTION_BACKENDS, "leankv", _create_unmirrored)
        monkeypatch.setattr(kit, "_populate_prefix_kv", _prefill_prefix)

    return use


def _create_unmirrored(runner: Any) -> Any:
    """The kit fills the table itself, and uses row 0, which is padding in a server: so nobody knows what it wrote."""
    backend = create_backend(runner)
    backend.page_rows.extended(torch.zeros(1, dtype=torch.int64))
    return backend


def _prefill_prefix(module: Any, case: Any, runner: Any, prefix_hidden: list[torch.Tensor], **where: Any) -> None:
    """The kit writes a prefix's raw tokens into the pool; ours has to see them go by, as in serving."""
    if not any(case.prefix_lens):
        return
    filled = {**vars(case), "forward_mode": ForwardMode.EXTEND, "prefix_lens": (0,) * case.batch_size}
    prefill = kit.DenseAttentionCase(**{**filled, "extend_lens": case.prefix_lens})
    batch = kit._make_forward_batch(prefill, runner, device="cpu", **where)
    with torch.no_grad(), forward_context(ForwardContext(attn_backend=runner.leankv)):
        runner.leankv.init_forward_metadata(batch)
        module(torch.cat(prefix_hidden), batch)
    # The kit fills the table for the whole case only once; the prefix batch has overwritten nothing but the prefix.
    kit._make_forward_batch(case, runner, device="cpu", **where)
