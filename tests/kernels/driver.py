"""The attention backend's own steps on plain tensors, without sglang: pages, open pages of rows, ops, merge."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from leankv_kernels import Ops, Plan, RawPages, RecordLayout, RecordStore, build_plan
from leankv_kernels.reference.tiers import choose_tiers, mean_attention


@dataclass(frozen=True)
class Tokens:
    """A sequence's queries ``[N, Hq, D]`` and keys and values ``[N, H, D]``, the same in every layer."""

    q: Tensor
    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.q.shape[0]


@dataclass(frozen=True)
class Method:
    """How pages are compressed."""

    layout: RecordLayout
    near_pages: int = 1
    rotation: str = "hadamard"
    alpha_high: float = 1.0
    alpha_mid: float = 0.8
    alpha_low: float = 0.0
    cap: float = 0.0
    sinks: bool = False


@dataclass
class Request:
    """A sequence on its way through the driver."""

    tokens: Tokens
    row: int
    done: int = 0
    pages: list[int] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def output(self) -> Tensor:
        """What its tokens got, ``[N, Hq, D]`` in the model's dtype."""
        return torch.cat(self.outputs)


class Driver:
    """One layer's attention of one process.

    Args:
        garbage: what open pages and unused slots hold before anything is written; NaN and inf must never come out.
        device: where everything lives.
    """

    def __init__(
        self,
        ops: Ops,
        method: Method,
        *,
        num_pages: int = 64,
        num_rows: int = 8,
        garbage: float = float("nan"),
        device: str = "cpu",
    ) -> None:
        self.ops, self.method, self.garbage, self.device = ops, method, garbage, device
        self.num_pages, self.num_rows = num_pages, num_rows
        self.store = RecordStore(method.layout, 1, num_pages, device)
        # Page ids in an order that no code can take for granted.
        self.free_pages = [1 + (i * 7 + 3) % num_pages for i in range(num_pages)]
        assert len(set(self.free_pages)) == num_pages
        slots = num_pages * method.layout.page_size
        self.req_to_token = torch.zeros(num_rows, slots, dtype=torch.int32, device=device)
        self.open_key = self.open_value = self.open_scores = torch.empty(0)

    def admit(self, tokens: Tokens, row: int, prefix: list[int] | None = None) -> Request:
        """A new request, whose first tokens are the given committed pages: a hit in the tree."""
        request = Request(tokens, row)
        for page in prefix or []:
            self._append_page(request, page)
        request.done = len(request.pages) * self.method.layout.page_size
        if not self.open_key.numel():
            self._attach(tokens)
        return request

    def _attach(self, tokens: Tokens) -> None:
        page = self.method.layout.page_size
        self.open_key, self.open_value = (
            torch.full((self.num_rows, page, *x.shape[1:]), self.garbage, dtype=x.dtype, device=self.device)
            for x in (tokens.k, tokens.v)
        )
        scores = (self.num_rows, tokens.q.shape[1], page)
        self.open_scores = torch.full(scores, -(1 << 30), dtype=torch.int32, device=self.device)

    def _append_page(self, request: Request, page: int) -> None:
        size = self.method.layout.page_size
        start = len(request.pages) * size
        slots = page * size + torch.arange(size, dtype=torch.int32, device=self.device)
        self.req_to_token[request.row, start : start + size] = slots
        request.pages.append(page)

    def step(self, batch: list[tuple[Request, int]]) -> None:
        """One forward over the next n tokens of each request."""
        size = self.method.layout.page_size
        for request, n in batch:
            while len(request.pages) * size < request.done + n:
                self._append_page(request, self.free_pages.pop())
        plan = build_plan(
            torch.tensor([r.row for r, _ in batch], device=self.device),
            [r.done for r, _ in batch],
            [n for _, n in batch],
            self.req_to_token,
            size,
            self.method.near_pages,
        )
        parts = zip(*[(r.tokens.q, r.tokens.k, r.tokens.v) for r, _ in batch], strict=True)
        spans = [slice(r.done, r.done + n) for r, n in batch]
        q, k, v = (torch.cat([x[s] for x, s in zip(part, spans, strict=True)]) for part in parts)
        out = self._attend(q, k, v, plan)
        for (request, n), got in zip(batch, out.split([n for _, n in batch]), strict=True):
            request.outputs.append(got)
            request.done += n

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        ops, method, rows = self.ops, self.method, plan.rows
        scale = q.shape[-1] ** -0.5
        # Always copies, as a prefill of several pages needs them; the pool's tests cover the way in place.
        raw = RawPages(self.open_key[rows], self.open_value[rows], self.open_scores[rows], plan.tile_range)
        raw.write(plan, k, v)
        own, own_lse = ops.attend_open(q, raw, plan, scale, method.cap)
        full, still = plan.full, plan.open
        if full.numel():
            significance = mean_attention(raw.scores[full], method.layout.num_kv_heads)
            chosen = [[method.alpha_high], [method.alpha_mid], [method.alpha_low]]
            alphas = torch.tensor(chosen, dtype=torch.float64, device=self.device)
            alphas = alphas.expand(3, method.layout.num_kv_heads)
            tiers = choose_tiers(significance, alphas, plan.full_index)
            pages = plan.own_pages[full]
            ops.commit_pages(self.store, 0, pages, raw.of(full), tiers, method.rotation)
        for kept, page in zip((self.open_key, self.open_value, self.open_scores), raw[:3], strict=True):
            kept[rows[still]] = page[still]
        past, past_lse = ops.attend_committed(q, self.store, 0, plan, scale, method.rotation, method.cap)
        merged, _ = ops.merge_states(own, own_lse, past, past_lse, sinks=self._sinks(q.shape[1]))
        return merged.to(q.dtype)

    def _sinks(self, heads: int) -> Tensor | None:
        return torch.arange(heads, dtype=torch.float64, device=self.device).sin() * 4 if self.method.sinks else None

    def run(self, request: Request, splits: list[int] | None = None) -> Request:
        """A request alone, in chunks of these lengths (default: all at once)."""
        for n in splits or [len(request.tokens) - request.done]:
            self.step([(request, n)])
        return request

    def records(self, request: Request) -> Tensor:
        """The bytes of the request's committed pages, without what depends on where they lie."""
        full = request.done // self.method.layout.page_size
        records = self.store.gather(0, torch.tensor(request.pages[:full], dtype=torch.int64, device=self.device))
        return without_place(records, self.method.layout)


def without_place(records: Tensor, layout: RecordLayout) -> Tensor:
    """Records with the words that say where they lie (page, layer, block list) zeroed."""
    out = records.clone()
    words = out.view(torch.int32)
    words[:, :2] = 0
    words[:, layout.list_word : layout.list_word + layout.max_blocks] = 0
    return out
