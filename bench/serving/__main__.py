"""Our server beside stock SGLang at equal physical bytes: hit rate, throughput, time to first token, latency.

``python -m bench.serving`` starts both with the same memory for the KV cache (pool, tables and open pages counted),
asks them in turn, and compares. Loads: ``prefix``, system prompts shared by groups of requests, with a pool too small
for stock to hold what is shared and with one large enough for both; ``conversations``, a real trace, with a small pool;
``fill``, how many tokens the tree holds at all.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import requests
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.plot import save_plot
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json
from bench.serving.equal import units_for
from bench.serving.plot import plot_serving
from bench.serving.workloads import Job, conversations, shared_prefix, unique
from leankv_sglang.models.shape import ModelShape, read_shape

CLIENTS = 8
PRUNED_PROFILE = str(Path(tempfile.gettempdir()) / "leankv-pruned.json")
SYSTEMS: dict[str, tuple[str, ...]] = {
    "leankv": (),
    "leankv balanced": ("--leankv-profile", "balanced"),
    "leankv no profile": ("--leankv-profile", "none"),
    "leankv k8v4": ("--leankv-tiers", "k8v4"),
    "leankv small": ("--leankv-significance", "none"),
    "leankv k4v2": ("--leankv-tiers", "k4v2"),
    "leankv pruned": ("--leankv-profile", PRUNED_PROFILE),
}
STOCK = "stock"
STOCKS: dict[str, tuple[int, tuple[str, ...]]] = {
    STOCK: (2, ()),
    "stock fp8": (1, ("--kv-cache-dtype", "fp8_e4m3")),
}
"""SGLang's own caches: bytes of a number, and flags. Its 8-bit one wants AMX on a CPU."""
SHRINK = {"leankv": 2.1, "leankv balanced": 3.3, "leankv no profile": 1.45, "leankv small": 2.0, "leankv pruned": 2.7}
"""Tokens that a system comes to hold, more or less, per unit."""


class Load(NamedTuple):
    """A workload at one size of memory."""

    name: str
    memory: int
    jobs: list[Job]


class Answer(NamedTuple):
    """What a client saw of one request."""

    prompt: int
    cached: int
    first: float
    gaps: list[float]


@cache
def model_shape() -> ModelShape:
    """The default model's."""
    from leankv_sglang.models import ensure_model

    return read_shape(str(ensure_model(quiet=True)))


def bytes_per_token() -> int:
    """Of the default model, in 16 bits."""
    return model_shape().token_bytes


def loads(names: list[str], quick: bool) -> list[Load]:
    """The workloads asked for."""
    groups, per_group, system = (6, 4, 768) if quick else (12, 8, 1024)
    prefix = shared_prefix(groups, per_group, system, 96, 24)
    distinct = groups * system + len(prefix) * 120
    trace = conversations(*((16, 4, 2500, 16) if quick else (60, 4, 4000, 32)))
    shared = sum(len(j.prompt) for j in trace)
    megabyte, token = 1 << 20, bytes_per_token()
    found = {
        "prefix, small pool": Load("prefix, small pool", int(0.4 * distinct * token) // megabyte * megabyte, prefix),
        "prefix, large pool": Load("prefix, large pool", int(1.6 * distinct * token) // megabyte * megabyte, prefix),
        "conversations, small pool": Load("conversations, small pool", int(0.15 * shared * token), trace),
    }
    return [load for name, load in found.items() if any(name.startswith(n) for n in names)]


def flags(system: str, memory: int, clients: int) -> tuple[str, ...]:
    """Flags that give a system so many bytes in all."""
    from leankv_sglang.models import resolve_model_path

    if system in STOCKS:
        size, extra = STOCKS[system]
        tokens = 2 * memory // (size * bytes_per_token())
    else:
        extra = SYSTEMS[system]
        tokens = units_for(memory, resolve_model_path(None), extra, clients)
    common = ("--max-total-tokens", str(tokens), "--max-running-requests", str(clients), "--enable-metrics")
    return (*common, *extra)


def write_pruned_profile() -> None:
    """A profile with every far token low and three heads of ten pruned: what pruning so much would hold, whatever it
    costs in quality."""
    shape = model_shape()
    heads = range(shape.layers * shape.kv_heads)
    pruned = set(random.Random(0).sample(heads, round(0.3 * len(heads))))
    low = [1e9 if head in pruned else 0.0 for head in heads]
    rows = [low[i : i + shape.kv_heads] for i in heads[:: shape.kv_heads]]
    profile = {
        "leankv_profile": 2,
        "model": {"num_layers": shape.layers, "num_kv_heads": shape.kv_heads, "head_dim": shape.head_dim},
        "page_size": 128,
        "tiers": "k8v4,k4v2",
        "rotation": "hadamard",
        "significance": "attention",
        "near_pages": 1,
        "points": {"pruned": {"alpha_high": 1e9, "alpha_low": rows}},
    }
    Path(PRUNED_PROFILE).write_text(json.dumps(profile))


def ask(server: Server, job: Job) -> Answer:
    """Stream one greedy request."""
    start = time.monotonic()
    moments: list[float] = []
    cached = 0
    for now, meta in server.stream(job.prompt, job.new_tokens):
        moments.append(now)
        cached = meta["cached_tokens"]
    gaps = [b - a for a, b in pairwise(moments)]
    return Answer(len(job.prompt), cached, moments[0] - start, gaps)


def tokens_held(server: Server, stock: bool) -> int:
    """Tokens in the tree of an idle server."""
    if not stock:
        return int(server.info()["leankv"]["tokens_held"])
    server.generate([1, 2, 3], 1)  # the gauges are written when a batch is
    for line in requests.get(server.url + "/metrics", timeout=60).text.splitlines():
        if line.startswith("sglang:kv_evictable_tokens"):
            return int(float(line.split()[-1]))
    raise RuntimeError("stock SGLang's metrics do not give its evictable tokens")


def answers_of(server: Server, jobs: list[Job], clients: int, what: str) -> tuple[list[Answer], float]:
    """All jobs, ``clients`` at a time, in order."""
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(tqdm(pool.map(lambda job: ask(server, job), jobs), total=len(jobs), desc=what))
    return answers, time.monotonic() - start


def summary(load: Load, system: str, held: int, answers: list[Answer], seconds: float) -> dict[str, Any]:
    """One row of the table."""
    total = sum(a.prompt for a in answers)
    tokens = total + sum(len(a.gaps) + 1 for a in answers)
    gaps = [gap for a in answers for gap in a.gaps]
    return {
        "workload": load.name,
        "system": system,
        "bytes": load.memory,
        "tokens_held": held,
        "hit_rate": sum(a.cached for a in answers) / total,
        "tok_per_s": tokens / seconds,
        "ttft_ms_p50": 1000 * statistics.median(a.first for a in answers),
        "itl_ms_p50": 1000 * statistics.median(gaps) if gaps else 0.0,
    }


def compare(load: Load, systems: list[str], rounds: int, clients: int) -> list[dict[str, Any]]:
    """All systems up at once, asked in turn, each round from an empty cache; medians over rounds."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serve(*flags(name, load.memory, clients), stock=name in STOCKS))
            for name in systems
        }
        for _ in range(rounds):
            for name, server in servers.items():
                server.flush()
                answers, seconds = answers_of(server, load.jobs, clients, f"{load.name}: {name}")
                found[name].append(summary(load, name, tokens_held(server, name in STOCKS), answers, seconds))
    rows = []
    for runs in found.values():
        row = dict(runs[0])
        for key, value in row.items():
            if not isinstance(value, str):
                row[key] = type(value)(statistics.median(r[key] for r in runs))
        row["tok_per_s_spread"] = "{:.0f}-{:.0f}".format(*(f(r["tok_per_s"] for r in runs) for f in (min, max)))
        rows.append(row)
    base = next((r["tok_per_s"] for r in rows if r["system"] == STOCK), 0.0)
    for row in rows:
        row["x_stock"] = row["tok_per_s"] / base if base else 0.0
    return rows


def fill(memory: int, systems: list[str], clients: int) -> list[dict[str, Any]]:
    """Prompts that share nothing, until the tree holds no more; one server after the other."""
    rows = []
    for name in systems:
        given = flags(name, memory, clients)
        wanted = int(1.15 * int(given[1]) * SHRINK.get(name, 1.05))
        jobs = unique(wanted, 2000)
        with serve(*given, stock=name in STOCKS) as server:
            answers, seconds = answers_of(server, jobs, clients, f"fill: {name}")
            row = summary(Load("fill", memory, jobs), name, tokens_held(server, name in STOCKS), answers, seconds)
        row["x_tokens"] = row["tokens_held"] / (memory // bytes_per_token())
        rows.append(row)
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "serving",
        __doc__,
        quick="one round of prefix, half as long, on a small pool, an eighth of the memory for fill; two minutes",
        sizes={"rounds": 1, "memory": 1 << 28, "loads": ["prefix, small pool"]},
        plot=True,
    )
    parser.add_argument(
        "--loads",
        nargs="+",
        default=["prefix", "conversations"],
        help="prefix, conversations, fill, or how one of their names begins",
    )
    parser.add_argument("--systems", nargs="+", default=["leankv", STOCK], choices=[*SYSTEMS, *STOCKS])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--memory", type=int, default=1 << 31, help="bytes for fill (default: 2 GiB)")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows: list[dict[str, Any]] = []
    if "leankv pruned" in args.systems:
        write_pruned_profile()
    for load in loads(args.loads, args.quick):
        rows += compare(load, args.systems, args.rounds, args.clients)
        write_json(args.json, rows)
    if "fill" in args.loads:
        rows += fill(args.memory, args.systems, args.clients)
        write_json(args.json, rows)
    print_table(rows, "SmolLM2 on this machine, at equal bytes beside stock SGLang")
    save_plot(lambda file: plot_serving(rows, file), args.plot)


if __name__ == "__main__":
    run(main)
