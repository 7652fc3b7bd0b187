"""Prometheus gauges and counters of the pool, beside SGLang's own."""

from __future__ import annotations

from typing import Any

from sglang.srt.observability.metrics_collector import SchedulerMetricsCollector

from leankv_sglang.kvcache.pool import current_pool
from leankv_sglang.observability.pool_stats import pool_figures

_GAUGES = {
    "tokens_held": "Tokens in committed pages.",
    "ratio": "Bytes of the held tokens in the model's dtype over their physical bytes.",
    "ratio_once_trimmed": "The same once near parts are trimmed, which go first when memory is short.",
    "blocks_free": "Blocks of the pool that hold no record.",
    "blocks_total": "Blocks of the pool.",
    "bytes_open_pages": "Bytes of the raw open pages of all request rows.",
    "bytes_allocated": "Bytes of everything the pool allocated.",
}
_COUNTERS = {
    "pages_committed": "Pages committed since the start.",
    "pages_trimmed": "Pages whose near part was cut, since the start.",
    "pages_demoted": "Pages whose refinement was cut, since the start.",
    "pages_healed": "Cut pages that were made whole by a recomputation, since the start.",
    "saturated_rows": "Keys and values of tokens, a KV head's each, with a channel beyond 65,504, since the start.",
    "nonfinite_rows": "Keys and values of tokens, a KV head's each, with a channel not finite, since the start.",
}
_PLACE_GAUGES = {
    "bytes": "Bytes of pages in a place beyond the device.",
    "objects": "Objects there, two a page at most.",
}
_PLACE_COUNTERS = {
    "puts": "Objects put into a place beyond the device, since the start.",
    "hits": "Objects found there, since the start.",
    "misses": "Objects asked for that were not there, since the start.",
    "damaged": "Objects that were not what they should be and were removed, since the start.",
    "dropped": "Objects that made room for others, since the start.",
    "failures": "Operations at which the place itself failed, since the start.",
}
_OFFLOAD_COUNTERS = {
    "pages_out": "Pages copied out of the pool, since the start.",
    "bytes_out": "Bytes of them.",
    "pages_in": "Pages loaded back, since the start.",
    "bytes_in": "Bytes of them.",
    "pages_from_store": "Pages loaded back that host memory did not have, since the start.",
    "refused": "Loads refused because their pages were gone, damaged or late, since the start.",
    "objects_left_out": "Objects not stored because too many were on their way, since the start.",
}


class LeanKVMetricsCollector(SchedulerMetricsCollector):
    """SGLang's scheduler collector plus ``leankv:*`` gauges and counters, set whenever it logs its own."""

    def __init__(self, labels: dict[str, str], *args: Any, **kwargs: Any) -> None:
        super().__init__(labels, *args, **kwargs)
        from prometheus_client import Counter, Gauge

        gauge, count = self._gauge_cls or Gauge, self._counter_cls or Counter
        names = list(labels)

        def make(name: str, text: str, extra: list[str]) -> Any:
            return gauge(f"leankv:{name}", text, labelnames=names + extra, multiprocess_mode="mostrecent")

        self._leankv = {name: make(name, text, []) for name, text in _GAUGES.items()}
        self._leankv_bytes = make("bytes", "Physical bytes in use by committed pages, by what they hold.", ["part"])
        self._counters = {name: count(f"leankv:{name}", text, names) for name, text in _COUNTERS.items()}
        self._counted: dict[tuple[str, ...], int] = {}
        self._offload = {n: count(f"leankv:offload_{n}", text, names) for n, text in _OFFLOAD_COUNTERS.items()}
        place = [*names, "place"]
        self._place_counters = {n: count(f"leankv:place_{n}", text, place) for n, text in _PLACE_COUNTERS.items()}
        self._place_gauges = {n: make(f"place_{n}", text, ["place"]) for n, text in _PLACE_GAUGES.items()}

    def log_stats(self, stats: Any) -> None:
        """Log SGLang's figures, then ours."""
        super().log_stats(stats)
        pool = current_pool()
        if pool is None:
            return
        figures = pool_figures(pool)
        for name, gauge in self._leankv.items():
            gauge.labels(**self.labels).set(figures[name])
        for part, value in figures["bytes"].items():
            self._leankv_bytes.labels(**self.labels, part=part).set(value)
        for name, counter in self._counters.items():
            self._count(counter, (name,), figures[name])
        beyond = figures.get("offload")
        if beyond is None:
            return
        for name, counter in self._offload.items():
            self._count(counter, ("offload", name), beyond[name])
        for place, held in beyond["places"].items():
            for name, gauge in self._place_gauges.items():
                gauge.labels(**self.labels, place=place).set(held[name])
            for name, counter in self._place_counters.items():
                self._count(counter, (place, name), held[name], place=place)

    def _count(self, counter: Any, which: tuple[str, ...], value: int, **labels: str) -> None:
        """Have a counter say what was counted elsewhere, where it may begin again at 0."""
        before = self._counted.get(which, 0)
        counter.labels(**self.labels, **labels).inc(value - before if value >= before else value)
        self._counted[which] = value
