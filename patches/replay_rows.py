"""Target: ``build_replay_fb_view`` of sglang 0.5.23's decode graph runner.

Reason: before a replay attention backends are given a view of the batch with a chosen list of fields. Request rows on
the host are not among them, and reading them from the device would wait for the forward under way.
"""

from __future__ import annotations

from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.build_replay_fb_view"


def install() -> None:
    """Have the view hold ``req_pool_indices_cpu``. Call while sglang loads its plugins."""

    def after(view: Any, *args: Any, **kwargs: Any) -> Any:
        batch = kwargs["forward_batch"] if "forward_batch" in kwargs else args[0]
        view.req_pool_indices_cpu = getattr(batch, "req_pool_indices_cpu", None)
        return view

    hook.register(TARGET, after, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    parameters = ["forward_batch", "buffers", "bs", "raw_bs", "num_tokens", "global_num_tokens_cpu"]
    parameters += ["seq_len_fill_value", "capture_forward_mode", "is_encoder_decoder"]
    return hook.problem(TARGET, "a replay's request rows", parameters)
