"""Which CUDA graphs a server may capture; what is not possible is switched off or, where asked for, refused."""

from __future__ import annotations

import logging
from typing import Any

from leankv_sglang.compression.build import kernel_name, layout_of
from leankv_sglang.config import NAME, required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.ranks import query_heads_on

logger = logging.getLogger(__name__)


def settle_graphs(server_args: Any, cfg: Any, model: Any) -> None:
    """Leave decode graphs and breakable prefill graphs on where there are CUDA kernels; switch off all others.

    Args:
        server_args: SGLang's, under resolution.
        cfg: what they have come to so far.
        model: SGLang's ModelConfig.

    Raises:
        LeanKVError: for prefill graphs of whole forwards, whose attention depends on lengths that the host knows; for
            kernels that do not take the model's heads.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    graphs = cfg.cuda_graph_config
    if graphs.prefill.backend == Backend.FULL:
        raise LeanKVError(
            "LeanKV cannot start: full CUDA graphs of prefills are not supported; leave the prefill phase at "
            f"{Backend.BREAKABLE}."
        )
    name = _kernels(cfg, model)  # whether there are graphs or not: what they do not take is refused here
    off = [Phase.DECODE, Phase.PREFILL] if cfg.device != "cuda" else []
    if not off and graphs.decode.backend != Backend.DISABLED and name != "cuda":
        logger.warning("LeanKV: decode runs without CUDA graphs, in which the %s kernels cannot be captured", name)
        off = [Phase.DECODE]
    for phase in off:
        graphs = with_phase(graphs, phase, backend=Backend.DISABLED)
        declare_resolution(server_args, NAME, cuda_graph_config=graphs)


def _kernels(cfg: Any, model: Any) -> str:
    config = required_config()
    layout = layout_of(config, cfg.page_size, model, cfg.tp_size)
    return kernel_name(cfg.device, config, layout, query_heads_on(model, cfg.tp_size) // layout.num_kv_heads)
