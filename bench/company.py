"""Does anybody else in the batch change an answer? ``python -m bench.company`` asks a real server.

Every prompt is answered alone on an empty cache, with each kind of request that a client may send: greedy, greedy with
penalties, a grammar, a bias, another accuracy, and sampled with a seed. Then all are asked again, hit or miss as it
comes, beside neighbours of one kind at a time that join and leave while they run. Tokens and log-probabilities must be
equal to the last digit.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import requests
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import random_prompts
from bench.common.server import Completion, Server, serve
from bench.common.table import print_table, write_json
from bench.stress import ENV

GRAMMAR = {"regex": "[a-z ]{40,60}"}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    "at least": {"min_new_tokens": 8, "ignore_eos": False, "repetition_penalty": 1.1},
    "grammar": GRAMMAR,
    "bias": {"logit_bias": {"20": 3.0, "30": -100.0}},
    "seed": {"temperature": 0.9, "sampling_seed": 7},
    "seed, filtered": {"temperature": 1.2, "top_p": 0.8, "top_k": 40, "min_p": 0.01, "sampling_seed": 8},
}
"""Sampling parameters of what is asked for."""
ACCURACIES: tuple[dict[str, Any], ...] = ({}, {"leankv": {"profile": "small"}})
NEIGHBOURS: dict[str, dict[str, Any]] = {
    "sampling": {"temperature": 1.0},
    "filtered": {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.02},
    "penalties": {"temperature": 0.7, "frequency_penalty": 1.0, "presence_penalty": -1.0, "repetition_penalty": 1.3},
    "at least": {"temperature": 0.7, "min_new_tokens": 3, "ignore_eos": False},
    "grammar": {"temperature": 1.0, **GRAMMAR},
    "bias": {"temperature": 1.0, "logit_bias": {"7": 5.0}},
    "four answers": {"temperature": 1.0, "n": 4},
    "seeds": {"temperature": 1.0, "sampling_seed": 3},
    "top log-probabilities": {},
    "aborted": {"temperature": 1.0, "max_new_tokens": 400},
    "other accuracies": {},
}
"""Sampling parameters of what is beside it."""


def _others(server: Server) -> list[dict[str, Any]]:
    """Accuracies of neighbours: names, and thresholds where tokens are scored by attention."""
    thresholds = {"alpha_high": 2.0, "alpha_low": 1.0}
    ask = {"text": "Hello", "sampling_params": {"max_new_tokens": 1}, "leankv": thresholds}
    taken = requests.post(server.url + "/generate", json=ask, timeout=600).ok
    return [{"profile": "near-lossless"}, {"profile": "balanced"}, *([thresholds] if taken else [])]


def _fields(kind: str, rng: random.Random, others: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "top log-probabilities":
        return {"return_logprob": True, "top_logprobs_num": 20, "logprob_start_len": 0}
    if kind == "other accuracies":
        return {"leankv": rng.choice(others)}
    return {}


@contextmanager
def neighbours(server: Server, kind: str, prompts: list[list[int]], clients: int = 3) -> Iterator[list[int]]:
    """While this runs, requests of one kind come and go; the list counts those that were answered."""
    stop, answered, others = threading.Event(), [0], _others(server)

    def ask(seed: int) -> None:
        rng, count = random.Random(f"{kind} {seed}"), 0
        while not stop.is_set():
            count += 1
            rid = f"neighbour-{seed:02d}-{count:06d}"
            sampling = {"max_new_tokens": rng.randrange(3, 30), "ignore_eos": True, "temperature": 0.0}
            body = {
                "input_ids": rng.choice(prompts)[: rng.randrange(20, 200)],
                "rid": rid,
                "sampling_params": {**sampling, **NEIGHBOURS[kind]},
                **_fields(kind, rng, others),
            }
            if kind == "aborted":
                later = threading.Timer(
                    rng.uniform(0.1, 0.6), requests.post, (server.url + "/abort_request",), {"json": {"rid": rid}}
                )
                later.start()
            answer = requests.post(server.url + "/generate", json=body, timeout=600)
            answered[0] += answer.ok
            if not answer.ok:
                raise RuntimeError(f"a neighbour ({kind}) was answered {answer.status_code}: {answer.text[:300]}")

    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(ask, seed) for seed in range(clients)]
        try:
            yield answered
        finally:
            stop.set()
    for job in jobs:
        job.result()


def company(
    server: Server, prompts: list[list[int]], tokens: int, kinds: list[str] | None = None, quiet: bool = False
) -> list[dict[str, Any]]:
    """A row for every kind of neighbour: how many answers, and how many equal those given alone.

    Args:
        server: has nothing else to do.
        prompts: token ids; each is asked in every kind of request and accuracy.
        tokens: of an answer.
        kinds: of neighbours, by default all.
        quiet: no progress bar.
    """
    asked = [(prompt, sampling, fields) for prompt in prompts for sampling in KINDS.values() for fields in ACCURACIES]

    def ask(which: int) -> Completion:
        prompt, sampling, fields = asked[which]
        return server.generate(prompt, tokens, fields={**fields, "top_logprobs_num": which % 3}, **sampling)

    alone = []
    for which in tqdm(range(len(asked)), desc="alone", unit="answer", disable=quiet):
        server.flush()
        alone.append(ask(which))
    rows = []
    for kind in kinds or list(NEIGHBOURS):
        before, start = server.retractions(), time.monotonic()
        order = random.Random(kind).sample(range(len(asked)), len(asked))
        with neighbours(server, kind, prompts) as answered, ThreadPoolExecutor(3) as pool:
            there = list(tqdm(pool.map(ask, order), desc=kind, total=len(order), unit="answer", disable=quiet))
        same = [
            a.tokens == alone[i].tokens and a.logprobs == alone[i].logprobs for i, a in zip(order, there, strict=True)
        ]
        wrong = sorted({_name(asked[i]) for i, equal in zip(order, same, strict=True) if not equal})
        rows.append(
            {
                "neighbours": kind,
                "answers": len(there),
                "bit_equal": sum(same),
                "hits": sum(a.cached > 0 for a in there),
                "neighbours_answered": answered[0],
                "retractions": server.retractions() - before,
                "seconds": round(time.monotonic() - start),
                "parted": ", ".join(wrong),
            }
        )
        if not quiet:
            print_table(rows[-1:])
    return rows


def _name(asked: tuple[list[int], dict[str, Any], dict[str, Any]]) -> str:
    return next(name for name, sampling in KINDS.items() if sampling is asked[1])


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "company",
        __doc__,
        quick="1 prompt of 300 tokens, 8 tokens an answer, the large pool alone, so no retractions; two minutes",
        sizes={"prompts": 1, "shortest": 300, "tokens": 8, "pools": [8192]},
    )
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--shortest", type=int, default=120, help="prompt in tokens; the longest has 400")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens")
    parser.add_argument(
        "--pools",
        type=int,
        nargs="+",
        default=[1536, 8192],
        help="tokens of the pools: one so small that requests are retracted, one that has room for hits",
    )
    parser.add_argument("--neighbours", nargs="+", choices=list(NEIGHBOURS))
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    prompts = random_prompts(args.prompts, args.shortest, 400)
    rows: list[dict[str, Any]] = []
    for pool in args.pools:
        flags = ("--max-total-tokens", str(pool), "--schedule-conservativeness", "0.05", "--enable-mixed-chunk")
        with serve(*flags, "--chunked-prefill-size", "256", env=ENV) as server:
            rows += [{"pool": pool, **row} for row in company(server, prompts, args.tokens, args.neighbours)]
        write_json(args.json, rows)
    print_table(rows, "Answers in company against answers alone")
    if parted := [row["neighbours"] for row in rows if row["bit_equal"] < row["answers"]]:
        raise SystemExit(f"Answers differ beside {', '.join(parted)}.")


if __name__ == "__main__":
    run(main)
