"""From a configuration to what works by it: record layout, kernels, thresholds and strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leankv_kernels import Ops, RecordLayout, get_ops
from leankv_kernels.ops import backend_name
from leankv_sglang.compression.profile_file import read_predictor
from leankv_sglang.compression.significance import STRATEGIES, Predictor, Significance
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.ranks import kv_heads_on
from leankv_sglang.models.shape import CacheShape, ModelShape


def make_layout(
    config: LeanKVConfig, page_size: int, num_kv_heads: int, head_dim: int, v_head_dim: int = 0
) -> RecordLayout:
    """The record layout for a model's shape; values are as wide as keys where no ``v_head_dim`` is given.

    Raises:
        LeanKVError: when the layout cannot hold that shape.
    """
    try:
        return RecordLayout(
            page_size, num_kv_heads, head_dim, *config.formats, config.near_pages > 0, config.mid_format, v_head_dim
        )
    except ValueError as error:
        raise LeanKVError(f"LeanKV cannot serve this model: {error}.") from error


def layout_for(config: LeanKVConfig, page_size: int, shape: CacheShape | ModelShape) -> RecordLayout:
    """The record layout of a shape.

    Raises:
        LeanKVError: as :func:`make_layout`.
    """
    return make_layout(config, page_size, shape.kv_heads, shape.head_dim, shape.v_head_dim)


def layout_of(config: LeanKVConfig, page_size: int, model: Any, ranks: int) -> RecordLayout:
    """The record layout on one of so many ranks that share a model's heads; ``model`` is sglang's ModelConfig.

    Raises:
        LeanKVError: as :func:`make_layout`.
    """
    return make_layout(config, page_size, kv_heads_on(model, ranks), model.head_dim, model.v_head_dim)


def kernels_for(device: str, config: LeanKVConfig, layout: RecordLayout, group: int | None = None) -> Ops:
    """The kernels that the configuration asks for, by default the best of those that take the layout and, where it is
    known, the query group.

    Raises:
        LeanKVError: one sentence, where they cannot work on the device.
    """
    try:
        return get_ops(device, config.kernels, layout, group)
    except ValueError as error:
        raise _unfit(error) from error


def kernel_name(device: str, config: LeanKVConfig, layout: RecordLayout, group: int) -> str:
    """Which those will be; loads nothing.

    Raises:
        LeanKVError: one sentence, where they do not take the layout or the query group.
    """
    try:
        return backend_name(device, config.kernels, layout, group)
    except ValueError as error:
        raise _unfit(error) from error


def _unfit(error: ValueError) -> LeanKVError:
    return LeanKVError(f"LeanKV has no kernels to serve with: {error}.")


def build_significance(
    config: LeanKVConfig,
    device: torch.device | str = "cpu",
    of_rank: Callable[[Tensor], Tensor] = lambda table: table,
) -> Significance:
    """The strategy of a configuration; a predictor is read from the profile it came with.

    Args:
        config: names the strategy.
        device: where it works.
        of_rank: from a table ``[layers, all KV heads, ...]`` to what this rank holds.

    Raises:
        LeanKVError: where the predictor is not, or no longer, to be had, or is another than at the start.
    """
    if config.significance != Predictor.name:
        return STRATEGIES[config.significance]()
    if not config.predictor:
        raise LeanKVError("--leankv-significance predictor comes with a profile; give --leankv-profile instead.")
    return Predictor(of_rank(read_predictor(config.predictor, config.predictor_digest)).to(device))
