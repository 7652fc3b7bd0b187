"""Sliding windows beneath our pages: SGLang's component, on ids that the tree keeps.

Where a request brings the window of tokens whose window the tree has let go, SGLang has the node take over the
request's slots. Our pages know their nodes and keep their ids, so here only the window changes hands.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.unified_cache.cache_action import FreeComponentDeviceSlot, RecoverEvictedSWA
from sglang.srt.mem_cache.unified_cache.components import ComponentType, SWAComponent
from torch import Tensor

FULL = ComponentType.FULL


class WindowComponent(SWAComponent):
    """See the module."""

    def _recover_from_incoming(
        self, *, node: Any, incoming_full: Tensor, start: int, end: int, result: Any, cache_actions: Any
    ) -> None:
        kept = node.component_data[FULL].value
        cache_actions.append(RecoverEvictedSWA(self.component_type, kept, incoming_full))
        self._publish_window(node=node, cache_actions=cache_actions)

    def update_component_on_insert_overlap(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        value_slice: Tensor,
        params: Any,
        result: Any,
        cache_actions: Any,
    ) -> int:
        """Where the tree lacks the window of these tokens, take the request's; free what else it brings of windows.

        Its pages of full layers are freed by their own component.
        """
        taken_from = super().update_component_on_insert_overlap(
            node, prefix_len, total_prefix_len, value_slice, params, result, cache_actions
        )
        held_from = max(params.prev_prefix_len, params.get_evicted_seqlen(self.component_type)) - total_prefix_len
        if (first := max(held_from, 0)) < taken_from:
            twice = value_slice[first:taken_from]
            cache_actions.append(FreeComponentDeviceSlot([twice], component_type=self.component_type))
        return prefix_len
