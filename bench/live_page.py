"""What the live page costs a server with a large tree: ``python -m bench.live_page``.

Fills a tree with ten thousand nodes, times the page, and lets requests decode while the page is open and while it is
not, in turn.
"""

from __future__ import annotations

import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import requests
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json
from leankv_sglang.models import DEFAULT_MODEL, resolve_model_path

PAGE = 64
BATCH = 32
WORDS = (5, 500)
"""Of the model's vocabulary, those that prompts are drawn from."""
LOOP = 5000
"""Additions of the loop that shows what the machine adds to a piece of work."""


def fill(server: Server, nodes: int) -> None:
    """Give the tree so many nodes of a page: every other one continues an earlier one."""
    source, known = random.Random(0), list[list[int]]()
    body: dict[str, Any] = {"sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    with tqdm(total=nodes, desc="filling the tree", unit="node") as bar:
        while len(known) < nodes:
            stems = [source.choice(known)[: 4 * PAGE] if known and source.random() < 0.5 else [] for _ in range(BATCH)]
            prompts = [stem + [source.randrange(*WORDS) for _ in range(PAGE)] for stem in stems]
            server.post("/generate", {**body, "input_ids": [[*prompt, 1] for prompt in prompts]})
            known += prompts
            bar.update(len(prompts))


def page_seconds(server: Server, times: int) -> list[float]:
    """How long the page takes, as often as it is asked for."""
    found = []
    for _ in range(times):
        begun = time.monotonic()
        requests.get(server.url + "/leankv", timeout=60).raise_for_status()
        found.append(time.monotonic() - begun)
        time.sleep(0.3)
    return found


@contextmanager
def beside(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """As long as the block lasts a thread does some work, which stops when the event is set."""
    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


@contextmanager
def open_page(server: Server) -> Iterator[dict[str, int]]:
    """The page is open, as in a browser: it takes events and throws them away. Gives how many, and their bytes."""
    got, ended = {"events": 0, "bytes": 0}, threading.Event()

    def look() -> None:
        with requests.get(server.url + "/leankv/events", stream=True, timeout=60) as events:
            for line in events.iter_lines(chunk_size=1 << 16):
                got["events"] += line.startswith(b"event:")
                got["bytes"] += len(line)
                if ended.is_set():
                    return

    with beside(look, ended):
        yield got


@contextmanager
def decoding(server: Server, requests_at_once: int) -> Iterator[list[int]]:
    """Requests decode as long as the block lasts; counts the tokens that have come."""
    count, ended = [0], threading.Event()

    def user(seed: int) -> None:
        source = random.Random(seed)
        while not ended.is_set():
            for _ in server.stream([source.randrange(*WORDS) for _ in range(PAGE)], 1500):
                count[0] += 1
                if ended.is_set():
                    return

    with ThreadPoolExecutor(requests_at_once) as pool:
        users = [pool.submit(user, seed) for seed in range(requests_at_once)]
        try:
            yield count
        finally:
            ended.set()
            for one in users:
                one.result()


def rate(count: list[int], seconds: float) -> float:
    """Tokens a second that came in so many seconds."""
    before, begun = count[0], time.monotonic()
    time.sleep(seconds)
    return (count[0] - before) / (time.monotonic() - begun)


def longest_slice(server: Server) -> str:
    """What the page says of how much longer any step took so far."""
    said = requests.get(server.url + "/leankv", timeout=60).text
    found = re.search(
        r"this page has cost no step of the server more than [\d.]+ ms of computing, or [\d.]+ ms on the clock", said
    )
    assert found is not None
    return found[0]


@contextmanager
def disturbed() -> Iterator[list[float]]:
    """As long as the block lasts, a tenth of a millisecond of the same work some 40 times a second: seconds of
    computing that it took. Where a hypervisor takes a core away, that counts as computing too."""
    took, ended = list[float](), threading.Event()

    def loop() -> None:
        while not ended.wait(0.025):
            begun = time.thread_time()
            sum(range(LOOP))
            took.append(time.thread_time() - begun)

    with beside(loop, ended):
        yield took


def measure(server: Server, args: Any) -> list[dict[str, Any]]:
    """A row for the page's times, and one for decoding."""
    idle = page_seconds(server, 10)
    rows: list[dict[str, Any]] = [{"what": "page, idle server", **_spread(idle, "s")}]
    pairs = []
    with disturbed() as took, decoding(server, args.at_once) as count:
        rate(count, args.seconds)
        rows.append({"what": f"page, {args.at_once} requests decoding", **_spread(page_seconds(server, 10), "s")})
        for i in tqdm(range(args.rounds), desc="decoding", unit="round"):
            found = {}
            for opened in (i % 2 == 0, i % 2 == 1):
                if opened:
                    with open_page(server) as got:
                        time.sleep(1.0)
                        found[opened] = rate(count, args.seconds)
                else:
                    time.sleep(1.5)
                    found[opened] = rate(count, args.seconds)
            pairs.append(found)
    rows.append({"what": "decode, tokens/s, closed", **_spread([pair[False] for pair in pairs])})
    rows.append({"what": "decode, tokens/s, open", **_spread([pair[True] for pair in pairs])})
    rows.append({"what": "open beside closed", **_spread([pair[True] / pair[False] for pair in pairs])})
    print(f"An open page: {got['bytes'] / max(got['events'], 1) / 1024:.0f} KiB an event.")
    print(f"The page says: {longest_slice(server)}.")
    usual, longest = 1000 * statistics.median(took), 1000 * max(took)
    print(f"A loop that computes for {usual:.2f} ms took up to {longest:.2f} ms meanwhile, with nobody's page.")
    return rows


def _spread(values: list[float], unit: str = "") -> dict[str, str]:
    return {
        "median": f"{statistics.median(values):.3f}{unit}",
        "least": f"{min(values):.3f}{unit}",
        "most": f"{max(values):.3f}{unit}",
        "of": str(len(values)),
    }


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "live_page",
        __doc__,
        quick="1,000 nodes, 4 rounds of 4 seconds; about two minutes",
        sizes={"nodes": 1000, "rounds": 4, "seconds": 4.0},
    )
    parser.add_argument("--model-path", default=DEFAULT_MODEL)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=4, help="requests that decode")
    parser.add_argument("--rounds", type=int, default=12, help="of the page open and closed, the order changing")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    flags = (
        "--page-size",
        str(PAGE),
        "--leankv-profile",
        "none",
        "--max-total-tokens",
        str((args.nodes + 1000) * PAGE),
    )
    with serve("--model-path", resolve_model_path(args.model_path), *flags) as server:
        fill(server, args.nodes)
        rows = measure(server, args)
    print_table(rows, f"The live page over a tree of {args.nodes:,} nodes")
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
