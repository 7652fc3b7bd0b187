"""Does a cache hit give what a miss gives? ``python -m bench.hit_miss`` asks real servers, ours and stock.

Each prompt is answered greedily with the cache flushed (the miss), again with its prefix cached (the hit), and once
more beside other requests in one batch. Tokens and log-probabilities must be equal to the last digit; stock drift is
measured beside ours. Systems under ``pressure`` have a pool that holds a few prompts: branches of prompts are asked
again and again in random order, several at a time, while pages are trimmed, healed and evicted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import mt_bench, random_prompts
from bench.common.server import Completion, Server, serve
from bench.common.table import print_table, write_json

PRUNED = ("--leankv-alpha-low", "0.3", "--leankv-alpha-high", "1.5")
SMALL = ("--max-total-tokens", "6144", "--max-running-requests", "4", "--chunked-prefill-size", "1024")
QUICK_POOL = ("--max-total-tokens", "2048")
QUICK_SYSTEMS = "leankv, chunk 2048", "leankv, pressure", "stock, chunk 2048"
SYSTEMS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "leankv, chunk 2048": (False, ("--chunked-prefill-size", "2048")),
    "leankv, chunk 256": (False, ("--chunked-prefill-size", "256")),
    "leankv balanced, chunk 2048": (False, ("--chunked-prefill-size", "2048", "--leankv-profile", "balanced")),
    "leankv small, chunk 2048": (False, ("--chunked-prefill-size", "2048", "--leankv-profile", "small")),
    "leankv pruned, chunk 2048": (False, ("--chunked-prefill-size", "2048", *PRUNED)),
    "leankv pruned, chunk 256": (False, ("--chunked-prefill-size", "256", *PRUNED)),
    "leankv, pressure": (False, SMALL),
    "leankv pruned, pressure": (False, (*SMALL, *PRUNED)),
    "leankv demoting, pressure": (False, (*SMALL, "--leankv-demote")),
    "stock, chunk 2048": (True, ("--chunked-prefill-size", "2048", "--max-total-tokens", "100000")),
}


class Comparison:
    """Answers compared with their reference: how many equal, how far apart, how near the ties where texts part."""

    def __init__(self) -> None:
        self.count = self.equal = self.same_text = 0
        self.drift = 0.0
        self.gaps: list[float] = []
        self.cached = 0

    def add(self, reference: Completion, other: Completion) -> None:
        """Compare one answer with its reference (made with ``top2=True``)."""
        self.count += 1
        self.cached += other.cached
        same = reference.tokens == other.tokens
        self.same_text += same
        self.equal += same and reference.logprobs == other.logprobs
        for i, (a, b) in enumerate(zip(reference.tokens, other.tokens, strict=True)):
            if a != b:
                self.gaps.append(reference.top2_gaps[i])
                break
            self.drift = max(self.drift, abs(reference.logprobs[i] - other.logprobs[i]))

    def row(self, system: str, what: str) -> dict[str, Any]:
        """A table row."""
        return {
            "system": system,
            "compared": what,
            "n": self.count,
            "cached_tokens": self.cached,
            "bit_equal": self.equal,
            "same_text": self.same_text,
            "max_drift": self.drift,
            "max_top2_gap_where_parted": max(self.gaps, default=0.0),
        }


def chat_turns(server: Server, questions: Sequence[str], max_new_tokens: int) -> Comparison:
    """A chat whose every turn hits what the turns before left; then each turn again after a flush."""
    from transformers import AutoTokenizer

    from leankv_sglang.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model(quiet=True))
    messages: list[dict[str, str]] = []
    asked: list[tuple[list[int], Completion]] = []
    server.flush()
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = server.generate(ids, max_new_tokens)
        asked.append((ids, answer))
        messages.append({"role": "assistant", "content": answer.text})
    result = Comparison()
    for ids, hit in asked:
        server.flush()
        result.add(server.generate(ids, max_new_tokens, top2=True), hit)
    return result


def under_pressure(system: str, server: Server, prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    """Prompts and branches of them, asked in random order on a pool too small for them, against each one's miss."""
    rng = random.Random(0)
    asked = list(prompts)
    for prompt in prompts:
        keep = rng.randrange(len(prompt) // 3, len(prompt))
        asked.append(prompt[:keep] + rng.choice(prompts)[: len(prompt) - keep])
    misses = []
    for prompt in tqdm(asked, desc=f"{system}: misses", unit="prompt"):
        server.flush()
        misses.append(server.generate(prompt, tokens, top2=True))
    server.flush()
    before = server.info()["leankv"]
    order = [i for _ in range(4) for i in rng.sample(range(len(asked)), len(asked))]
    result = Comparison()
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda i: server.generate(asked[i], tokens), order)
        for i, answer in tqdm(zip(order, answers, strict=True), total=len(order), desc=system, unit="prompt"):
            result.add(misses[i], answer)
    after = server.info()["leankv"]
    if after["pages_trimmed"] == before["pages_trimmed"]:
        raise RuntimeError(f"{system}: nothing was trimmed, so nothing was shown: ask for more prompts, or longer ones")
    events = ", ".join(f"{after[f'pages_{e}'] - before[f'pages_{e}']} {e}" for e in ("trimmed", "healed", "demoted"))
    return [result.row(system, f"under pressure: {events}")]


def compare(
    system: str, server: Server, prompts: list[list[int]], tokens: int
) -> tuple[list[dict[str, Any]], list[Completion]]:
    """All comparisons on one server; also the misses, to compare servers with each other."""
    alone, batch_miss, batch_hit = Comparison(), Comparison(), Comparison()
    misses: list[Completion] = []
    for prompt in tqdm(prompts, desc=system, unit="prompt"):
        server.flush()
        misses.append(server.generate(prompt, tokens, top2=True))
        alone.add(misses[-1], server.generate(prompt, tokens))
    # Whether requests share a batch does not depend on the chunk size: once per configuration is enough.
    if "chunk 256" not in system:
        server.flush()
        for result in (batch_miss, batch_hit):
            with ThreadPoolExecutor(len(prompts)) as pool:
                for miss, answer in zip(misses, pool.map(lambda p: server.generate(p, tokens), prompts), strict=True):
                    result.add(miss, answer)
    chat = chat_turns(server, [q for turns in mt_bench()[:3] for q in turns], tokens)
    rows = [
        alone.row(system, "hit alone"),
        batch_miss.row(system, "miss in a batch"),
        batch_hit.row(system, "hit in a batch"),
        chat.row(system, "chat turns"),
    ]
    return [row for row in rows if row["n"]], misses


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "hit_miss",
        __doc__,
        quick="three systems, 4 prompts up to 1,000 tokens (12 on a small pool), 16 new tokens; under three minutes",
        sizes={"prompts": 4, "high": 1000, "tokens": 16, "systems": list(QUICK_SYSTEMS)},
    )
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--low", type=int, default=300, help="shortest prompt in tokens")
    parser.add_argument("--high", type=int, default=3000, help="longest prompt in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), metavar="NAME", help=f"of {'; '.join(SYSTEMS)}")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    prompts = random_prompts(args.prompts, args.low, args.high)
    pressing = random_prompts(12, args.low, args.high) if args.quick else prompts[::2]
    rows: list[dict[str, Any]] = []
    first: dict[str, list[Completion]] = {}
    for system in args.systems or SYSTEMS:
        stock, flags = SYSTEMS[system]
        if "pressure" in system:
            with serve(*flags, *(QUICK_POOL if args.quick else ())) as server:
                rows += under_pressure(system, server, pressing, args.tokens)
            print_table(rows, "Hit against miss, greedy")
            write_json(args.json, rows)
            continue
        with serve(*flags, stock=stock) as server:
            new, misses = compare(system, server, prompts, args.tokens)
        rows += new
        accuracy = system.split(",")[0]
        if accuracy in first:
            across = Comparison()
            for a, b in zip(first[accuracy], misses, strict=True):
                across.add(a, b)
            rows.append(across.row(system, "miss, other chunk size"))
        first.setdefault(accuracy, misses)
        print_table(rows, "Hit against miss, greedy")
        write_json(args.json, rows)
    if parted := [row["system"] for row in rows if "stock" not in row["system"] and row["bit_equal"] < row["n"]]:
        raise SystemExit(f"Answers differ from their misses: {', '.join(parted)}.")


if __name__ == "__main__":
    run(main)
