"""Does a cache hit give what a miss gives? ``python -m bench.hit_miss`` asks real servers, ours and stock.

Each prompt is answered greedily with the cache flushed (the miss), again with its prefix cached (the hit), and once
more beside other requests in one batch. Alone, tokens and log-probabilities must be equal to the last digit; in a batch
the model's own matrix products drift, so stock SGLang's drift is measured beside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bench.data import mt_bench, random_prompts
from bench.server import Completion, Server, serve
from bench.table import print_table, write_json

PRUNED = ("--leankv-alpha-low", "0.3", "--leankv-alpha-high", "1.5")
SYSTEMS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "leankv, chunk 2048": (False, ("--chunked-prefill-size", "2048")),
    "leankv, chunk 256": (False, ("--chunked-prefill-size", "256")),
    "leankv pruned, chunk 2048": (False, ("--chunked-prefill-size", "2048", *PRUNED)),
    "leankv pruned, chunk 256": (False, ("--chunked-prefill-size", "256", *PRUNED)),
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--low", type=int, default=300, help="shortest prompt in tokens")
    parser.add_argument("--high", type=int, default=3000, help="longest prompt in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--quick", action="store_true", help="4 prompts up to 1,000 tokens, 16 new tokens")
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only this one; may repeat")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.high, args.tokens = 4, 1000, 16
    prompts = random_prompts(args.prompts, args.low, args.high)
    rows: list[dict[str, Any]] = []
    first: dict[bool, list[Completion]] = {}
    for system in args.system or SYSTEMS:
        stock, flags = SYSTEMS[system]
        with serve(*flags, stock=stock) as server:
            new, misses = compare(system, server, prompts, args.tokens)
        rows += new
        pruned = "pruned" in system
        if not stock and pruned in first:
            across = Comparison()
            for a, b in zip(first[pruned], misses, strict=True):
                across.add(a, b)
            rows.append(across.row(system, "miss, other chunk size"))
        first.setdefault(pruned, misses)
        print_table(rows, "Hit against miss, greedy")
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
