"""Prometheus gauges and counters of the pool, beside SGLang's own."""

from __future__ import annotations

from typing import Any

from sglang.srt.observability.metrics_collector import SchedulerMetricsCollector

from leankv_sglang.kvcache.pool import current_pool
from leankv_sglang.observability.pool_stats import pool_figures

Named = dict[str, tuple[str, str]]
"""What figures are called for Prometheus, units in their names: from a figure's own name to that, and its text."""

_GAUGES: Named = {
    "tokens_held": ("held_tokens", "Tokens in committed pages."),
    "ratio": ("compression_ratio", "Bytes of the held tokens in the model's dtype over their physical bytes."),
    "ratio_once_trimmed": (
        "trimmed_compression_ratio",
        "The same once near parts are trimmed, which go first when memory is short.",
    ),
    "units_free": ("free_units", "Units free: what a token takes at worst, before its page is committed."),
    "units_total": ("pool_units", "Units of the pool."),
    "blocks_free": ("free_blocks", "Blocks of the pool that hold no record."),
    "blocks_total": ("pool_blocks", "Blocks of the pool."),
    "bytes_open_pages": ("open_pages_bytes", "Bytes of the raw open pages of all request rows."),
    "bytes_allocated": ("allocated_bytes", "Bytes of everything the pool allocated."),
}
_COUNTERS: Named = {
    "pages_committed": ("committed_pages", "Pages committed since the start."),
    "pages_trimmed": ("trimmed_pages", "Pages whose near part was cut, since the start."),
    "pages_demoted": ("demoted_pages", "Pages whose refinement was cut, since the start."),
    "pages_healed": ("healed_pages", "Cut pages that were made whole by a recomputation, since the start."),
    "pages_evicted": ("evicted_pages", "Pages that left the tree, since the start."),
    "saturated_rows": (
        "saturated_rows",
        "Keys and values of tokens, a KV head's each, with a channel beyond 65,504, since the start.",
    ),
    "nonfinite_rows": (
        "nonfinite_rows",
        "Keys and values of tokens, a KV head's each, with a channel not finite, since the start.",
    ),
}
_PLACE_GAUGES: Named = {
    "bytes": ("place_bytes", "Bytes of pages in a place beyond the device."),
    "objects": ("place_objects", "Objects there, two a page at most."),
}
_PLACE_COUNTERS: Named = {
    "puts": ("place_put_objects", "Objects put into a place beyond the device, since the start."),
    "hits": ("place_hit_objects", "Objects found there, since the start."),
    "misses": ("place_missed_objects", "Objects asked for that were not there, since the start."),
    "damaged": (
        "place_damaged_objects",
        "Objects that were not what they should be and were removed, since the start.",
    ),
    "dropped": ("place_dropped_objects", "Objects that made room for others, since the start."),
    "failures": ("place_failures", "Operations at which the place itself failed, since the start."),
}
_OFFLOAD_COUNTERS: Named = {
    "pages_out": ("offload_out_pages", "Pages copied out of the pool, since the start."),
    "bytes_out": ("offload_out_bytes", "Bytes of them."),
    "pages_in": ("offload_in_pages", "Pages loaded back, since the start."),
    "bytes_in": ("offload_in_bytes", "Bytes of them."),
    "pages_from_store": (
        "offload_store_pages",
        "Pages loaded back that host memory did not have, since the start.",
    ),
    "refused": ("offload_refused_loads", "Loads refused because pages were gone, damaged or late, since the start."),
    "objects_left_out": (
        "offload_left_out_objects",
        "Objects not stored because too many were on their way, since the start.",
    ),
}


class LeanKVMetricsCollector(SchedulerMetricsCollector):
    """SGLang's scheduler collector plus ``leankv:*`` gauges and counters, set whenever it logs its own."""

    def __init__(self, labels: dict[str, str], *args: Any, **kwargs: Any) -> None:
        super().__init__(labels, *args, **kwargs)
        from prometheus_client import Counter, Gauge

        gauge, count = self._gauge_cls or Gauge, self._counter_cls or Counter
        names = list(labels)

        def gauges(figures: Named, *more: str) -> dict[str, Any]:
            return {
                figure: gauge(f"leankv:{name}", text, labelnames=[*names, *more], multiprocess_mode="mostrecent")
                for figure, (name, text) in figures.items()
            }

        def counters(figures: Named, *more: str) -> dict[str, Any]:
            return {figure: count(f"leankv:{name}", text, [*names, *more]) for figure, (name, text) in figures.items()}

        parts: Named = {"bytes": ("pages_bytes", "Physical bytes in use by committed pages, by what they hold.")}
        self._leankv, self._counters, self._offload = gauges(_GAUGES), counters(_COUNTERS), counters(_OFFLOAD_COUNTERS)
        self._leankv_bytes = gauges(parts, "part")["bytes"]
        self._place_counters, self._place_gauges = counters(_PLACE_COUNTERS, "place"), gauges(_PLACE_GAUGES, "place")
        self._counted: dict[tuple[str, ...], int] = {}

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
