"""Puts the page together: one HTML document, and its sections again whenever they have changed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from leankv_sglang.compression.request_params import named
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.observability.live.messages import TREE
from leankv_sglang.observability.live.page.heads_view import heads_view
from leankv_sglang.observability.live.page.memory_view import (
    CHART_HEIGHT,
    CHART_WIDTH,
    chart_view,
    memory_view,
    rates_view,
    tiles,
)
from leankv_sglang.observability.live.page.request_view import requests_view
from leankv_sglang.observability.live.page.tree_view import RATIOS, ROW_PIXELS, Decode, tree_view
from leankv_sglang.observability.live.page.watch import RankView, Watch
from leankv_sglang.observability.live.page.words import say_bytes, say_seconds

MOST_AGE = 0.8
"""Seconds for which sections are not made again: viewers of the same rank and head share them."""
Chosen = tuple[int, int, int]
"""Rank, layer and KV head that somebody looks at."""


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    # Beside this file, which is the source's in an editable installation.
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)


class Page:
    """See the module.

    Args:
        watch: what the schedulers say.
        config: the server's.
        model: its name.
        decode: makes text of tokens; None where no text may be shown, or nobody can make it.
        tensor_ranks: over which a model's heads are dealt out; the first one answers, about its own.
    """

    def __init__(
        self, watch: Watch, config: LeanKVConfig, model: str, decode: Decode | None, tensor_ranks: int = 1
    ) -> None:
        self._watch, self._config, self._model, self._decode = watch, config, model, decode
        self._tensor_ranks = tensor_ranks
        self._made: dict[Chosen, tuple[float, dict[str, str]]] = {}

    async def sections(self, chosen: Chosen) -> dict[str, str]:
        """HTML of every section by its id."""
        now = time.monotonic()
        made = self._made.get(chosen)
        if made is None or now - made[0] > MOST_AGE:
            view = self._watch.views[min(chosen[0], self._watch.ranks - 1)]
            # What is drawn elsewhere may not change meanwhile; all else is replaced as a whole.
            view = replace(view, samples=deque(view.samples), errors=dict(view.errors))
            html = await asyncio.to_thread(self._render, view, *chosen[1:])
            self._made = {key: old for key, old in self._made.items() if now - old[0] <= MOST_AGE}
            made = self._made[chosen] = now, html
        return made[1]

    async def document(self, chosen: Chosen) -> str:
        """The page as it is now."""
        sections = await self.sections(chosen)
        rank, layer, head = chosen
        heads = self._watch.views[min(rank, self._watch.ranks - 1)].heads
        return (
            _templates()
            .get_template("page.html")
            .render(
                model=self._model,
                config=self._config.describe(),
                tensor_ranks=self._tensor_ranks,
                sections=sections,
                query=f"rank={rank}&layer={layer}&head={head}",
                rank_links=list(range(self._watch.ranks)) if self._watch.ranks > 1 else [],
                chosen=rank,
                layer=layer,
                head=head,
                layers=heads.counts.shape[0] if heads else layer + 1,
                heads=heads.counts.shape[1] if heads else head + 1,
                accuracies=list(named(self._config)),
            )
        )

    def _render(self, view: RankView, layer: int, head: int) -> dict[str, str]:
        made: Any = _templates().get_template("sections.html").module
        now = time.time()
        memory, chart, tree = memory_view(view), chart_view(view), tree_view(view, self._decode, now)
        if tree["read"] is not None:
            tree |= {
                "said_bytes": say_bytes(tree["bytes"]),
                "said_age": say_seconds(tree["read"]),
                "said_took": say_seconds(tree["took"]),
                "said_longest": f"{1000 * view.body.get('longest_slice', 0.0):.2f} ms",
                "said_clock": f"{1000 * view.body.get('longest_clock', 0.0):.2f} ms",
            }
        heads = heads_view(view, layer, head, now)
        return {
            "now": str(made.now(tiles(view))),
            "memory": str(made.memory(memory)),
            "memory-table": str(made.memory_table(memory)),
            "chart": str(made.chart(chart, CHART_WIDTH, CHART_HEIGHT)),
            "chart-table": str(made.chart_table(chart)),
            "tree": str(made.tree(tree, ROW_PIXELS, RATIOS, view.errors.get(TREE))),
            "tree-table": str(made.tree_table(tree)),
            "requests": str(made.requests(requests_view(view))),
            "heads": str(made.heads(heads)),
            "heads-table": str(made.heads_table(heads)),
            "rates": str(made.rates(rates_view(view))),
        }


def text_maker(tokenizer: Any) -> Decode:
    """What makes one line of text of tokens, short enough to be shown beside others."""

    @lru_cache(maxsize=4096)
    def text(tokens: tuple[int, ...]) -> str:
        if tokenizer is None:
            return " ".join(map(str, tokens))
        return " ".join(str(tokenizer.decode(tokens)).split()) or "(blank)"

    return lambda tokens: text(tuple(tokens))
