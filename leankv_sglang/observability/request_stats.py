"""What a finished request is told about its own KV: its accuracy, its bytes, its ratio, in ``meta_info["leankv"]``."""

from __future__ import annotations

from typing import Any, ClassVar

from leankv_sglang.compression.request_params import FIELD, accuracy_of
from leankv_sglang.kvcache.pool import LeanKVPool, current_pool
from leankv_sglang.kvcache.sizing import model_dtype_bytes_per_token

_ATTRIBUTE = "leankv_echo"


def note_release(req: Any, tree_cache: Any) -> None:
    """Note the figures of a finished request on it, while its row still names its pages."""
    pool = current_pool()
    if pool is not None and req.finished() and req.kv.holds_kv:
        row = tree_cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        setattr(req, _ATTRIBUTE, _figures(pool, req, row))


def _figures(pool: LeanKVPool, req: Any, row: Any) -> dict[str, Any]:
    tokens, page = req.owned_kv_len(), pool.page_size
    pages = row[: tokens // page * page : page].long() // page
    held = pool.bytes_of_pages(pages) + (pool.open_page_bytes() if tokens % page else 0)
    raw = tokens * model_dtype_bytes_per_token(pool.layout, pool.layer_num, pool.open_dtype.itemsize)
    accuracy = accuracy_of(req.cache_salt, pool.config)
    return {**accuracy.describe(), "bytes": held, "ratio": raw / held if held else 0.0}


def echoing_streamer(base: type) -> type:
    """SGLang's output streamer class, sending the figures along with a request's last output."""

    class LeanKVOutputStreamer(base):  # type: ignore[misc, valid-type]
        """Adds one value of one customized key to finished requests."""

        __slots__ = ()
        has_additional_customized_info: ClassVar[bool] = True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            """Lists of at most one, since SGLang's tokenizer side appends them to what it has."""
            info: dict[str, list[Any]] = super().build_additional_customized_info(reqs)
            echoes = [[req.leankv_echo] if req.finished() and hasattr(req, _ATTRIBUTE) else [] for req in reqs]
            return {**info, FIELD: echoes} if any(echoes) else info

    return LeanKVOutputStreamer
