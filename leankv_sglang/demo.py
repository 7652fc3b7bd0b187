"""``python -m leankv_sglang.demo``: stock SGLang and LeanKV in the same bytes, on this machine, in some two minutes.

Both serve the default model without a network. Documents are asked about one after the other until both caches are
full, ours with its pages trimmed, then all are asked about again: what was still cached answers at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leankv_sglang import processes
from leankv_sglang.byte_size import parse_bytes
from leankv_sglang.command import exit_code
from leankv_sglang.compression.build import layout_for
from leankv_sglang.compression.profile import SERVED_POINT, find_profile
from leankv_sglang.environment import has_accelerator
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.sizing import tokens_for
from leankv_sglang.models import ensure_model
from leankv_sglang.models.shape import ModelShape, read_shape
from leankv_sglang.processes import NotReady, Process, free_port, start_module, stop
from leankv_sglang.table import print_table

READY_SECONDS, BAR = 240.0, 40
STOCK, OURS = "stock SGLang, bf16", "LeanKV, {}"


@dataclass
class Contestant:
    """A running server, and what it answered when everything was asked again."""

    name: str
    url: str
    process: Process
    log: Path
    seconds: list[float] = field(default_factory=list)
    cached: int = 0
    asked: int = 0

    def ask(self, document: list[int], counts: bool) -> None:
        """One token about a document; the time and what was cached are kept if it counts."""
        import requests

        body = {"input_ids": document, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        start = time.monotonic()
        answer = requests.post(self.url + "/generate", json=body, timeout=600)
        answer.raise_for_status()
        if counts:
            self.seconds.append(time.monotonic() - start)
            self.cached += answer.json()["meta_info"]["cached_tokens"]
            self.asked += len(document)


def documents(folder: str, count: int, length: int) -> list[list[int]]:
    """Passages of Python's own documentation, which is on every machine."""
    from pydoc_data import topics

    from transformers import AutoTokenizer

    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    tokens = AutoTokenizer.from_pretrained(folder)(text[: 12 * count * length], verbose=False).input_ids
    if len(tokens) < count * length:
        raise LeanKVError(f"There is text for {len(tokens) // length} documents of {length} tokens; ask for fewer.")
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def pools(profile: str, folder: str, shape: ModelShape, memory: int, requests: int) -> tuple[int, int]:
    """Tokens of stock's pool, and units of ours, in the same bytes: open pages and tables included.

    Raises:
        LeanKVError: where the memory does not hold a page, or there is no such profile.
    """
    chosen = find_profile(profile, folder)
    layout = layout_for(chosen.config, chosen.page_size, shape)
    units = tokens_for(memory, layout, shape.layers, shape.query_heads, requests)
    if not units:
        raise LeanKVError(f"--memory {memory:,} does not hold a page of LeanKV beside its open pages; give more.")
    return memory // shape.token_bytes, units


@contextmanager
def server(name: str, module: str, flags: list[str]) -> Iterator[Contestant]:
    """A server for the duration of the block; what it printed stays if that ends in an error."""
    port = free_port()
    descriptor, log = tempfile.mkstemp(prefix="leankv-demo-", suffix=".log")
    with os.fdopen(descriptor, "wb") as output:
        process = start_module(module, [*flags, "--port", str(port), "--sleep-on-idle"], output, {})
    try:
        yield Contestant(name, f"http://127.0.0.1:{port}", process, Path(log))
        Path(log).unlink()
    finally:
        stop(process)


def wait_until_ready(one: Contestant) -> None:
    """Return once a token came out.

    Raises:
        LeanKVError: after ``READY_SECONDS``, or when the server has ended; it names the log.
    """
    try:
        processes.wait_until_ready(one.url, one.process, READY_SECONDS, one.name)
    except NotReady as error:
        raise LeanKVError(f"{one.name} {error}; see {one.log}.") from None


def contest(both: list[Contestant], asked: list[list[int]]) -> None:
    """Ask about every document, then about every one again, each contestant in turn."""
    from tqdm import tqdm

    for one in both:
        wait_until_ready(one)
    steps = [(counts, document) for counts in (False, True) for document in asked]
    for counts, document in tqdm(steps, desc="asking", unit="document"):
        for one in both:
            one.ask(document, counts)


def tokens_held(ours: Contestant) -> int:
    """What a LeanKV server's cache holds now."""
    import requests

    figures = requests.get(ours.url + "/server_info", timeout=60).json()["internal_states"][0]["leankv"]
    return int(figures["tokens_held"])


def show(both: list[Contestant], held: list[int], memory: int) -> None:
    """The table and the bars."""
    rows: list[dict[str, Any]] = [
        {
            "in the same bytes": one.name,
            "tokens held": tokens,
            "x 16 bits": f"{tokens / held[0]:.1f}x",
            "found in the cache": f"{one.cached / one.asked:.0%}",
            "ms to first token, median": round(1000 * statistics.median(one.seconds)),
        }
        for one, tokens in zip(both, held, strict=True)
    ]
    print_table(rows, f"Every document asked about a second time; {memory / 2**20:,.0f} MiB of KV cache each")
    width = max(len(one.name) for one in both)
    slowest = max(statistics.median(one.seconds) for one in both)
    for title, values, unit in (
        ("found in the cache", [one.cached / one.asked for one in both], "{:.0%}"),
        ("time to first token", [statistics.median(one.seconds) / slowest for one in both], ""),
    ):
        print(title)
        for one, value in zip(both, values, strict=True):
            print(f"  {one.name:<{width}}  {'█' * round(BAR * value):<{BAR}}  {unit.format(value) if unit else ''}")
    print()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m leankv_sglang.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--memory", default="96MiB", help="bytes of each KV cache (default: 96MiB)")
    out.add_argument("--documents", type=int, default=12, metavar="N", help="(default: 12)")
    out.add_argument("--length", type=int, default=1340, help="tokens of a document (default: 1340)")
    out.add_argument("--profile", default=SERVED_POINT, help=f"point of the shipped profile (default: {SERVED_POINT})")
    return out


def run(args: argparse.Namespace) -> None:
    """Start both, ask, show.

    Raises:
        LeanKVError: one sentence saying what is wrong.
    """
    memory, requests = parse_bytes(args.memory), 1
    if args.documents < 1 or not 128 <= args.length <= 4096:
        raise LeanKVError("--documents is at least 1, and --length from 128 to 4,096 tokens.")
    folder = str(ensure_model())
    sizes = pools(args.profile, folder, read_shape(folder), memory, requests)
    asked = documents(folder, args.documents, args.length)
    flags = ["--model-path", folder, "--max-running-requests", str(requests)]
    stock = [*flags, "--max-total-tokens", str(sizes[0]), *([] if has_accelerator() else ["--device", "cpu"])]
    ours = [*flags, "--max-total-tokens", str(sizes[1]), "--leankv-profile", args.profile]
    with ExitStack() as stack:
        both = [
            stack.enter_context(server(STOCK, "sglang.launch_server", stock)),
            stack.enter_context(server(OURS.format(args.profile), "leankv_sglang.launch_server", ours)),
        ]
        print("starting both servers ...", flush=True)
        contest(both, asked)
        held = [sizes[0], tokens_held(both[1])]
    show(both, held, memory)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
