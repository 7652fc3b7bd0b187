"""Many requests with aborts against a pool too small: nothing may be lost, nothing may leak, no answer be wrong.

``python -m bench.stress`` starts a server whose pool holds a few requests at a time, so SGLang evicts and retracts.
Flags that it does not know go to the server: ``--leankv-host-memory 64MiB --leankv-store file:FOLDER`` has pages leave
and come back meanwhile. A witness asks the same few prompts all the time, and compares their answers with the first.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    server: Server,
    prompts: list[list[int]],
    clients: int,
    new_tokens: int,
    seed: int = 0,
    abort_within: float = 20.0,
    idle: bool = True,
) -> dict[str, Any]:
    """Send requests from ``clients`` threads, a fifth of them aborted; then look for what was lost.

    Args:
        server: a running one.
        prompts: token ids of each request; a third of them are changed to share a prefix with an earlier one.
        clients: threads.
        new_tokens: the most tokens of an answer.
        seed: of lengths and aborts.
        abort_within: seconds after which a request that is aborted is so at the latest.
        idle: nothing else is asked, so look for what leaked too, see :func:`settle`.

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
    return {
        "requests": len(prompts),
        "answered": outcomes.pop("answered", 0),
        "aborted": outcomes.pop("aborted", 0),
        "lost": ", ".join(f"{n} {what}" for what, n in outcomes.items()) or "none",
        "retractions": server.retractions(),
        **(settle(server) if idle else {}),
    }


def settle(server: Server) -> dict[str, Any]:
    """What leaked, and what is still held once the cache is empty.

    Raises:
        RuntimeError: when the server is no longer alive.
    """
    time.sleep(5)  # idle: the scheduler checks for leaks and audits the bytes, and prints what it finds
    if server.process.poll() is not None:
        raise RuntimeError(f"the server died:\n{server.log_text()[-3000:]}")
    held = server.info().get("leankv", {}).get("tokens_held")
    server.flush()
    log, figures = server.log_text(), server.info().get("leankv")
    return {
        "leaks": sum(log.count(word) for word in ("leak detected", "[pool-bytes]", "Traceback")),
        "tokens_held_at_idle": held,
        "blocks_after_flush": figures["blocks_total"] - figures["blocks_free"] if figures else None,
    }


class Witness:
    """Asks the same prompts again and again beside all else, and counts answers that are not the first ones."""

    def __init__(self, server: Server, prompts: list[list[int]]) -> None:
        self._server, self._prompts = server, prompts
        self._first = [server.generate(prompt, 8) for prompt in prompts]
        self.asked = self.wrong = self.hits = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the duration of the block."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.is_set():
            i = self.asked % len(self._prompts)
            self.asked += 1
            try:
                answer, first = self._server.generate(self._prompts[i], 8), self._first[i]
            except requests.RequestException:
                self.wrong += 1
                continue
            self.hits += answer.cached > 0
            self.wrong += answer.tokens != first.tokens or answer.logprobs != first.logprobs


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
    args, rest = command_line().parse_known_args()
    flags = ["--max-total-tokens", str(args.pool), "--schedule-conservativeness", "0.1"]
    flags += ["--model-path", args.model_path] if args.model_path else []
    rows: list[dict[str, Any]] = []
    flags += [*(["--device", "cpu"] if args.stock else ["--leankv-demote"]), *rest]
    with serve(*flags, env=ENV, stock=args.stock) as server, watched(server) as trend:
        end = time.monotonic() + 60 * args.minutes
        words = vocabulary_of(args.model_path) if args.model_path else 0
        watched_prompts = drawn_prompts(4, 300, 700, words, 99) if words else random_prompts(4, 300, 700, 99)
        witness = Witness(server, watched_prompts)
        while not rows or time.monotonic() < end:
            lengths = (args.requests, 10, args.longest)
            seed = len(rows)
            prompts = drawn_prompts(*lengths, words, seed=seed) if words else random_prompts(*lengths, seed=seed)
            with witness.watching():
                row = stress(server, prompts, args.clients, args.tokens, seed, args.abort_within, idle=False)
            rows.append({**row, **settle(server), "watched": witness.asked, "wrong": witness.wrong})
            figures = server.info().get("leankv", {})
            rows[-1] |= {k: figures.get(k) for k in ("pages_trimmed", "pages_healed", "pages_demoted")}
            rows[-1]["scheduler_mib"] = resident_mib(server)
            for place, held in figures.get("offload", {}).get("places", {}).items():
                rows[-1] |= {f"{place}_mib": held["bytes"] >> 20, f"{place}_damaged": held["damaged"]}
            print_table(rows[-1:], f"Round {len(rows)}; retractions, leaks and pages since the start")
            write_json(args.json, rows)
    totals = {k: sum(row[k] for row in rows) for k in ("requests", "answered", "aborted")}
    lost = {row["lost"] for row in rows} - {"none"}
    print_table([{**rows[-1], **totals, "lost": "; ".join(lost) or "none"}], f"Stress, {len(rows)} rounds")
    print(f"{witness.asked} answers watched, {witness.hits} of them hits, {witness.wrong} other than the first")
    print_table(trend.rows(), "Resident memory of the scheduler")
    print(f"\nGrowth of the median since the first {args.settled:.0f} s: {trend.growth(args.settled):.1f} MiB")
    write_json(args.json, [*rows, {"seconds": trend.seconds, "scheduler_mib": trend.mib}])
    if witness.wrong and not args.stock:
        raise SystemExit(f"{witness.wrong} answers are wrong.")


if __name__ == "__main__":
    run(main)
