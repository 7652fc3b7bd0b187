"""Many requests with aborts against a pool that is too small: nothing may be lost, nothing may leak.

``python -m bench.stress`` starts a server whose pool holds a few requests at a time, so SGLang evicts and retracts.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import drawn_prompts, random_prompts
from bench.common.memory import resident_mib, watched
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json

POOL_TOKENS = 6144
ENV = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    # Admission then reckons with one new token a request, so decoding runs into the end of the pool.
    "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "1",
}


ACCURACIES: tuple[dict[str, Any], ...] = ({}, {}, {"profile": "near-lossless"}, {"profile": "small"})


def _ask(
    server: Server, prompt: list[int], new_tokens: int, abort_after: float | None, number: int, mixed: bool
) -> str:
    # An abort takes every request whose id begins with the given one, so ids have one length.
    rid = f"stress-{number:06d}"
    body = {
        "input_ids": prompt,
        "rid": rid,
        # With ignore_eos the scheduler would reserve every token beforehand and never have to retract.
        "sampling_params": {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "temperature": 0.8},
        "stream": abort_after is not None,
    }
    # Stock SGLang has no such field.
    if mixed and (accuracy := ACCURACIES[number % len(ACCURACIES)]):
        body["leankv"] = accuracy
    if abort_after is None:
        answer = requests.post(server.url + "/generate", json=body, timeout=1800)
        if not answer.ok:
            return f"http {answer.status_code}"
        meta = answer.json()["meta_info"]
        done = meta["finish_reason"]["type"] == "length" and meta["completion_tokens"] == new_tokens
        return "answered" if done else f"cut short ({meta['finish_reason']})"
    start = time.monotonic()
    with requests.post(server.url + "/generate", json=body, timeout=1800, stream=True) as stream:
        for _ in stream.iter_lines():
            if time.monotonic() - start > abort_after:
                break
    requests.post(server.url + "/abort_request", json={"rid": rid}, timeout=60)
    return "aborted"


def stress(
    server: Server, prompts: list[list[int]], clients: int, new_tokens: int, seed: int = 0, abort_within: float = 20.0
) -> dict[str, Any]:
    """Send requests from ``clients`` threads, a fifth of them aborted; then look for what was lost.

    Args:
        server: a running one.
        prompts: token ids of each request; a third of them are changed to share a prefix with an earlier one.
        clients: threads.
        new_tokens: the most tokens of an answer.
        seed: of lengths and aborts.
        abort_within: seconds after which a request that is aborted is so at the latest.

    Raises:
        RuntimeError: when the server is no longer alive at the end.
    """
    rng = random.Random(seed)
    prompts, longest = list(prompts), max(map(len, prompts))
    # A third share a prefix with an earlier one, so that the tree splits and locks nodes.
    for i in range(1, len(prompts)):
        if rng.random() < 0.33:
            donor = prompts[rng.randrange(i)]
            keep = rng.randrange(len(donor))
            prompts[i] = donor[:keep] + prompts[i][: longest - keep]
    rng.shuffle(prompts)
    jobs = [
        (p, rng.randint(1, new_tokens), rng.uniform(0.0, abort_within) if rng.random() < 0.2 else None) for p in prompts
    ]
    mixed = "leankv" in server.info()
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(_ask, server, *job, i, mixed) for i, job in enumerate(jobs)]
        outcomes = Counter(f.result() for f in tqdm(futures, unit="request"))
    time.sleep(5)  # idle: the scheduler checks for leaks and audits the bytes, and prints what it finds
    if server.process.poll() is not None:
        raise RuntimeError(f"the server died:\n{server.log_text()[-3000:]}")
    held = server.info().get("leankv", {}).get("tokens_held")
    server.flush()
    log, figures = server.log_text(), server.info().get("leankv")
    return {
        "requests": len(prompts),
        "answered": outcomes.pop("answered", 0),
        "aborted": outcomes.pop("aborted", 0),
        "lost": ", ".join(f"{n} {what}" for what, n in outcomes.items()) or "none",
        "retractions": server.retractions(),
        "leaks": sum(log.count(word) for word in ("leak detected", "[pool-bytes]", "Traceback")),
        "tokens_held_at_idle": held,
        "blocks_after_flush": figures["blocks_total"] - figures["blocks_free"] if figures else None,
    }


def vocabulary_of(folder: str) -> int:
    """Tokens of a model in a folder."""
    return int(json.loads((Path(folder) / "config.json").read_text())["vocab_size"])


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "stress",
        __doc__,
        quick="40 requests at once, prompts up to 300 tokens, a pool of 1,024; a minute and a half",
        sizes={"requests": 40, "clients": 40, "longest": 300, "pool": 1024, "abort_within": 10.0},
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--longest", type=int, default=1500, help="longest prompt in tokens")
    parser.add_argument("--tokens", type=int, default=200, help="most new tokens")
    parser.add_argument("--pool", type=int, default=POOL_TOKENS, help="tokens of the pool")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long, with a flush after each round")
    parser.add_argument("--model-path", help="by default the default model")
    parser.add_argument("--stock", action="store_true", help="SGLang without LeanKV, for what it does itself")
    parser.add_argument("--settled", type=float, default=300.0, help="seconds after which memory should not grow")
    parser.add_argument("--abort-within", type=float, default=20.0, help="seconds; a fifth of the requests are aborted")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    flags = ["--max-total-tokens", str(args.pool), "--schedule-conservativeness", "0.1"]
    flags += ["--model-path", args.model_path] if args.model_path else []
    rows: list[dict[str, Any]] = []
    flags += ["--device", "cpu"] if args.stock else ["--leankv-demote"]
    with serve(*flags, env=ENV, stock=args.stock) as server, watched(server) as trend:
        end = time.monotonic() + 60 * args.minutes
        while not rows or time.monotonic() < end:
            lengths = (args.requests, 10, args.longest)
            if args.model_path:
                prompts = drawn_prompts(*lengths, vocabulary_of(args.model_path), seed=len(rows))
            else:
                prompts = random_prompts(*lengths, seed=len(rows))
            rows.append(stress(server, prompts, args.clients, args.tokens, len(rows), args.abort_within))
            figures = server.info().get("leankv", {})
            rows[-1] |= {k: figures.get(k) for k in ("pages_trimmed", "pages_healed", "pages_demoted")}
            rows[-1]["scheduler_mib"] = resident_mib(server)
            print_table(rows[-1:], f"Round {len(rows)}; retractions, leaks and pages since the start")
            write_json(args.json, rows)
    totals = {k: sum(row[k] for row in rows) for k in ("requests", "answered", "aborted")}
    lost = {row["lost"] for row in rows} - {"none"}
    print_table([{**rows[-1], **totals, "lost": "; ".join(lost) or "none"}], f"Stress, {len(rows)} rounds")
    print_table(trend.rows(), "Resident memory of the scheduler")
    print(f"\nGrowth of the median since the first {args.settled:.0f} s: {trend.growth(args.settled):.1f} MiB")
    write_json(args.json, [*rows, {"seconds": trend.seconds, "scheduler_mib": trend.mib}])


if __name__ == "__main__":
    run(main)
