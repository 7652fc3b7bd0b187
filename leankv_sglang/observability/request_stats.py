"""What a finished request is told about its own KV in ``meta_info["leankv"]``.

Its accuracy; how many of its tokens lie in compressed pages, what those take now and will take once they are trimmed,
each with its ratio to the model's dtype (null where no page is full yet); what its raw open page takes beside them; and
the shares of its tokens by tier.
"""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from leankv_sglang.compression.request_params import FIELD, accuracy_of
from leankv_sglang.kvcache.page_rows import PageRows
from leankv_sglang.kvcache.pool import LeanKVPool, current_pool
from leankv_sglang.observability.live.scheduler.requests_seen import seen

_noted: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""Figures of finished requests whose last output is not sent yet."""


def note_release(req: Any, tree_cache: Any) -> None:
    """Note the figures of a finished request, while its row still names its pages; asks no device."""
    pool = current_pool()
    if pool is not None and req.finished() and req.kv.holds_kv:
        rows = pool.mirror_rows(tree_cache.req_to_token_pool)
        _noted[req] = figures = _figures(pool, req, rows)
        seen.note(req, figures)


def _figures(pool: LeanKVPool, req: Any, rows: PageRows) -> dict[str, Any]:
    tokens, page = req.owned_kv_len(), pool.page_size
    pages = rows.of(req.kv.req_pool_idx, tokens // page)
    held, trimmed = pool.bytes_of_pages(pages), pool.bytes_of_pages(pages, trimmed=True)
    raw = pool.model_bytes(tokens // page * page)
    figures = {
        **accuracy_of(req.cache_salt, pool.config).describe(),
        "compressed_tokens": tokens // page * page,
        "bytes": held,
        "bytes_once_trimmed": trimmed,
        "bytes_open_page": pool.open_pages.row_nbytes() if tokens % page else 0,
        "ratio": raw / held if held else None,
        "ratio_once_trimmed": raw / trimmed if trimmed else None,
    }
    shares = {tier: round(share, 4) for tier, share in pool.tier_shares(pages).items()}
    return {**figures, "tiers": shares} if shares else figures


def reporting_streamer(base: type) -> type:
    """SGLang's output streamer class, sending the figures along with a request's last output."""

    class LeanKVOutputStreamer(base):  # type: ignore[misc, valid-type]
        """Adds one value of one customized key to finished requests."""

        __slots__ = ()
        has_additional_customized_info: ClassVar[bool] = True

        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            """Lists of at most one, since SGLang's tokenizer side appends them to what it has."""
            info: dict[str, list[Any]] = super().build_additional_customized_info(reqs)
            figures = [_noted.get(req) if req.finished() else None for req in reqs]
            sent = [[] if one is None else [one] for one in figures]
            return {**info, FIELD: sent} if any(sent) else info

    return LeanKVOutputStreamer
