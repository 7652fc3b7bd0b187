"""How bench.kernels measures: contestants in turn, round by round, over more bytes than the caches hold."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

import bench.common.checkout  # noqa: F401
from leankv_kernels import Ops

COLD = 4
"""The bytes that pass between two uses of the same bytes, in sizes of the last cache."""
LEAST_SECONDS = 0.02
READ_BYTES = 512 << 20
READ = "read"


@dataclass
class Setup:
    """What a run measures with, and what it has to say besides its rows."""

    device: torch.device
    ops: Ops
    rounds: int
    budget: int
    scatter: bool = False
    beside: tuple[Ops, ...] = ()  # other backends that are timed in the same rounds
    notes: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # cores that other programs took, per comparison

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)

    def layers(self, nbytes: int) -> int:
        """Layers to rotate over so that their ``nbytes`` each are well over the last cache."""
        return math.ceil(COLD * cache_bytes(self.device) / nbytes)


@dataclass
class Contestant:
    """One of several that are compared: its calls, one per layer, each on bytes of its own.

    Args:
        name: unlike the others' in a comparison.
        calls: one pass; together they touch more than the caches hold.
        reset: what has to happen before a pass can be repeated; not timed.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    reset: Callable[[], None] | None = None


def per_layer(call: Callable[[int], object], layers: int) -> list[Callable[[], object]]:
    """A contestant's calls."""
    return [partial(call, layer) for layer in range(layers)]


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return max(32 << 20, int(size.read_text().strip().rstrip("K")) << 10 if size.exists() else 0)


def free_bytes(device: torch.device) -> int:
    """Memory a run may take: 40% of what is available, of a GPU 70%."""
    if device.type == "cuda":
        return int(0.7 * torch.cuda.mem_get_info(device)[0])
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(0.4 * 1024 * int(fields["MemAvailable"].split()[0]))


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """The items behind a progress bar, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what)


def _seconds(device: torch.device, run: Callable[[], object], times: int) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - start


class _Ready:
    """A contestant warmed up, its pass a CUDA graph where there is a GPU, and repeated until it is long enough."""

    def __init__(self, contestant: Contestant, setup: Setup) -> None:
        self.device, self.reset, self.calls = setup.device, contestant.reset, len(contestant.calls)

        def run() -> None:
            for call in contestant.calls:
                call()

        self.run: Callable[[], object] = run
        self.times = 1
        self.seconds()  # compiles, starts threads
        if self.device.type == "cuda":
            self._capture(contestant, setup)
        self.times = math.ceil(LEAST_SECONDS / (self.seconds() * self.calls))

    def _capture(self, contestant: Contestant, setup: Setup) -> None:
        graph = torch.cuda.CUDAGraph()
        run = self.run
        try:
            if self.reset:
                self.reset()
            with torch.cuda.graph(graph):
                run()
        except Exception as error:
            setup.note(f"{contestant.name}: no CUDA graph ({str(error).splitlines()[0]}), so launches are timed too")
            torch.cuda.synchronize(self.device)
            return
        self.run = graph.replay
        self.seconds()

    def seconds(self) -> float:
        """Seconds per call."""
        if not self.reset:
            return _seconds(self.device, self.run, self.times) / (self.times * self.calls)
        total = 0.0
        for _ in range(self.times):
            self.reset()
            total += _seconds(self.device, self.run, 1)
        return total / (self.times * self.calls)


def _busy_elsewhere() -> float:
    """Seconds that cores have worked for other programs."""
    _, user, nice, system, *_ = Path("/proc/stat").read_text().split()
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def measure(contestants: Sequence[Contestant], setup: Setup) -> dict[str, list[float]]:
    """Seconds per call of every contestant, round by round, every other round backwards."""
    ready = {c.name: _Ready(c, setup) for c in contestants}
    assert len(ready) == len(contestants), "two contestants of one name"
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    start, busy = time.perf_counter(), _busy_elsewhere()
    for number in range(setup.rounds):
        for name in list(ready)[:: -1 if number % 2 else 1]:
            seconds[name].append(ready[name].seconds())
    setup.others.append(max(0.0, (_busy_elsewhere() - busy) / (time.perf_counter() - start)))
    return seconds


def fastest(contestants: Sequence[Contestant], setup: Setup) -> list[Contestant]:
    """The fastest of several forms of one thing, by a few passes; none where none of them works."""
    seconds = {}
    for contestant in contestants:
        try:
            ready = _Ready(contestant, setup)
            seconds[contestant.name] = min(ready.seconds() for _ in range(3))
        except Exception as error:
            setup.note(f"{contestant.name} does not work here: {str(error).splitlines()[0] if str(error) else error!r}")
    return [min((c for c in contestants if c.name in seconds), key=lambda c: seconds[c.name])] if seconds else []


@lru_cache(maxsize=1)
def bandwidth(device: torch.device) -> tuple[Contestant, int]:
    """A contestant that moves bytes and does nothing else, and how many: reads on a CPU, a copy on a GPU."""
    words = torch.ones(READ_BYTES // 4, dtype=torch.int32, device=device)
    if device.type == "cuda":
        to = torch.empty_like(words)
        return Contestant(READ, [lambda: to.copy_(words)]), 2 * words.nbytes
    from leankv_kernels.cpu.extension import _cpu

    threads = torch.get_num_threads()
    return Contestant(READ, [lambda: _cpu.read_bandwidth(words, threads)]), words.nbytes


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def row_of(
    setup: Setup,
    what: dict[str, Any],
    seconds: dict[str, list[float]],
    ours: str,
    baselines: Sequence[str],
    nbytes: int,
    dense_bytes: int,
    read_bytes: int,
) -> dict[str, Any]:
    """A row: the call's bytes and time beside the best baseline of the same rounds.

    Args:
        setup: the run's.
        what: the row's op, shape, tiers, context and batch.
        seconds: of all contestants, with ``READ`` among them.
        ours: the contestant that the row is about.
        baselines: those that it is compared with.
        nbytes, dense_bytes: what the call and what the baselines have to move; 0 where a limit by bytes makes no sense.
        read_bytes: what ``READ`` moves.
    """
    low, middle, high = quartiles(seconds[ours])
    rates = [read_bytes / s / 1e9 for s in seconds[READ]]
    shares = [nbytes / s / 1e9 / rate for s, rate in zip(seconds[ours], rates, strict=True)]
    row = what | {
        "backend": setup.ops.name,
        "bytes": nbytes,
        "ms": middle * 1e3,
        "ms_low": low * 1e3,
        "ms_high": high * 1e3,
        "gbps": nbytes / middle / 1e9,
        "ns_per_byte": middle * 1e9 / nbytes,
        "bandwidth_gbps": statistics.median(rates),
        "of_bandwidth": statistics.median(shares),
        "rounds": setup.rounds,
        "other_cores": setup.others[-1],
        **dict.fromkeys(("ratio_dense", "ratio_limit", "dense_ms", "sdpa_ms")),
    }
    if baselines:
        best = min(baselines, key=lambda name: statistics.median(seconds[name]))
        ratios = [dense / own for dense, own in zip(seconds[best], seconds[ours], strict=True)]
        ratio_low, ratio, ratio_high = quartiles(ratios)
        row |= {"ratio_dense": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
        row |= {"dense": best.split("|")[0], "dense_ms": statistics.median(seconds[best]) * 1e3}
        row["baselines_ms"] = {n.split("|")[0]: [1e3 * q for q in quartiles(seconds[n])] for n in baselines}
        sdpa = [median for name, (_, median, _) in row["baselines_ms"].items() if name.startswith("SDPA")]
        row["sdpa_ms"] = sdpa[0] if sdpa else None
        if dense_bytes:
            row |= {"dense_bytes": dense_bytes, "byte_ratio": dense_bytes / nbytes}
            row |= {"dense_gbps": dense_bytes / row["dense_ms"] / 1e6, "ratio_limit": ratio * nbytes / dense_bytes}
    return row
