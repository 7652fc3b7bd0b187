"""Chats of many turns on two servers behind SGLang's router, with and without one store for both."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import requests
from tqdm import tqdm

from bench.common.data import random_prompts
from bench.common.processes import held
from bench.common.server import serve
from bench.offload.master import mooncake_master
from leankv_sglang.processes import free_port, start_module

NEW_TOKENS, QUESTION = 24, 80


def has_router() -> bool:
    """Whether SGLang's router is installed."""
    return importlib.util.find_spec("sglang_router") is not None


@contextmanager
def router(urls: list[str], policy: str) -> Iterator[str]:
    """The router's address, over servers."""
    port = free_port()
    args = ["--port", str(port), "--policy", policy, "--prometheus-port", str(free_port()), "--worker-urls", *urls]
    with tempfile.TemporaryFile() as log:
        process = start_module("sglang_router.launch_router", args, log, {})
        with held(process):
            url = f"http://127.0.0.1:{port}"
            for _ in range(200):
                try:
                    if requests.get(url + "/readiness", timeout=2).ok:
                        break
                except requests.RequestException:
                    pass
                time.sleep(0.2)
            yield url


def chat(url: str, document: list[int], questions: list[list[int]], bar: Any) -> list[tuple[int, int, float]]:
    """The turns of one chat about a document: prompt tokens, how many of them were cached, seconds to the answer."""
    turns, context = [], list(document)
    for question in questions:
        context += question
        sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        start = time.monotonic()
        answer = requests.post(url + "/generate", json={"input_ids": context, "sampling_params": sampling}, timeout=600)
        answer.raise_for_status()
        found = answer.json()
        turns.append((len(context), found["meta_info"]["cached_tokens"], time.monotonic() - start))
        context += found["output_ids"]
        bar.update()
    return turns


def router_rows(chats: int, turns: int) -> list[dict[str, Any]]:
    """A row for each policy of the router, with a store and without."""
    documents = random_prompts(chats, 500, 900, 21)
    questions = [random_prompts(turns, QUESTION, QUESTION, 100 + i) for i in range(chats)]
    rows: list[dict[str, Any]] = []
    for shared in (False, True):
        with ExitStack() as stack:
            common = ["--max-total-tokens", "16384", "--max-running-requests", "4"]
            if shared:
                address, _ = stack.enter_context(mooncake_master())
                common += ["--leankv-store", address, "--leankv-store-size", "256MiB"]
            servers = [stack.enter_context(serve(*common)) for _ in range(2)]
            for policy in ("round_robin", "cache_aware"):
                for server in servers:
                    server.flush()
                # Another beginning a policy, or the store would know it from the last.
                begun = [[len(rows) + 100, *document] for document in documents]
                with router([server.url for server in servers], policy) as url:
                    name = f"{policy}, {'one store' if shared else 'no store'}"
                    with tqdm(total=chats * turns, desc=name, unit="turn") as bar, ThreadPoolExecutor(2) as pool:
                        jobs = [pool.submit(chat, url, *one, bar) for one in zip(begun, questions, strict=True)]
                        done = [turn for job in jobs for turn in job.result()]
                rows.append(
                    {
                        "router": policy,
                        "store": "one for both" if shared else "none",
                        "hit rate": sum(cached for _, cached, _ in done) / sum(asked for asked, _, _ in done),
                        "median ms a turn": 1000 * statistics.median(seconds for _, _, seconds in done),
                    }
                )
    return rows
