"""Start a real server, ours or stock SGLang's, and talk to it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import requests

from bench.common.processes import held
from leankv_sglang.processes import NotReady, Process, free_port, start_module, wait_until_ready

READY_TIMEOUT = 240.0


Start = Callable[[str, list[str], IO[bytes], dict[str, str]], Process]
"""From a module, its arguments, a file for all that it prints, and additional environment."""


@dataclass
class Completion:
    """One answer of ``/generate``."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    top2_gaps: list[float]  # log-probability of the best token minus the second best, empty unless asked for
    cached: int
    prompt_tokens: int
    finish: str
    latency: float
    kv: dict[str, Any]  # LeanKV's account of the request's pages, empty from stock


@dataclass
class Server:
    """A running server."""

    url: str
    process: Process
    log: Path
    ready_seconds: float

    def post(self, path: str, body: dict[str, Any], timeout: float = 1800) -> Any:
        """POST JSON, return the decoded answer; raises for an HTTP error."""
        response = requests.post(self.url + path, json=body, timeout=timeout)
        response.raise_for_status()
        return response.json()

    def generate(
        self,
        prompt: str | list[int],
        max_new_tokens: int = 64,
        top2: bool = False,
        fields: dict[str, Any] | None = None,
        **params: Any,
    ) -> Completion:
        """Greedy unless ``params`` say otherwise; with log-probabilities. ``fields`` join the request's own."""
        key = "text" if isinstance(prompt, str) else "input_ids"
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0, "ignore_eos": True, **params}
        ask = {key: prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 2 if top2 else 0}
        ask.update(fields or {})
        return self.completion(self.post("/generate", body=ask))

    def stream(self, prompt: list[int], new_tokens: int) -> Iterator[tuple[float, dict[str, Any]]]:
        """A greedy request: the moment each piece of its answer came, and its ``meta_info``."""
        sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
        with requests.post(self.url + "/generate", json=body, stream=True, timeout=3600) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    now = time.monotonic()
                    yield now, json.loads(line[6:])["meta_info"]

    @staticmethod
    def completion(answer: dict[str, Any]) -> Completion:
        """Parse one answer of ``/generate``."""
        meta = answer["meta_info"]
        pairs = meta.get("output_token_logprobs") or []
        gaps = [top[0][0] - top[1][0] for top in meta.get("output_top_logprobs") or [] if top and len(top) > 1]
        return Completion(
            answer["text"],
            [t for _, t, *_ in pairs],
            [p for p, *_ in pairs],
            gaps,
            meta["cached_tokens"],
            meta["prompt_tokens"],
            meta["finish_reason"]["type"],
            meta["e2e_latency"],
            meta.get("leankv", {}),
        )

    def flush(self) -> None:
        """Empty the prefix cache; the server refuses while anything runs, so try until it is idle."""
        for _ in range(100):
            if requests.post(self.url + "/flush_cache", timeout=60).ok:
                return
            time.sleep(0.1)
        raise RuntimeError("the cache could not be flushed: the server never became idle")

    def info(self) -> dict[str, Any]:
        """The scheduler's internal state."""
        state: dict[str, Any] = requests.get(self.url + "/server_info", timeout=60).json()["internal_states"][0]
        return state

    def retractions(self) -> int:
        """How many batches have had requests retracted so far, by what the server printed."""
        return self.log_text().count("KV cache pool is full. Retract")

    def log_text(self) -> str:
        """What the server printed so far."""
        return self.log.read_text(errors="replace")


@contextmanager
def serve(
    *args: str,
    stock: bool = False,
    env: dict[str, str] | None = None,
    start: Start = start_module,
    log_file: Path | None = None,
    timeout: float = READY_TIMEOUT,
) -> Iterator[Server]:
    """Run a server for the duration of the block.

    Args:
        args: flags; without ``--model-path`` the default model.
        stock: SGLang's own launcher instead of ours, from the same environment.
        env: additional environment.
        start: how its process begins.
        log_file: what it prints goes there and stays; without one it is gone when the server is.
        timeout: seconds in which it has to become ready.

    Raises:
        RuntimeError: when it does not become ready, with the end of its log.
    """
    from leankv_sglang.models import ensure_model

    port = free_port()
    # An idle scheduler polls without rest otherwise, on the cores that others are measured on.
    flags = [*args, "--port", str(port), "--sleep-on-idle"]
    if "--model-path" not in args:
        flags += ["--model-path", str(ensure_model(quiet=True))]
    module = "sglang.launch_server" if stock else "leankv_sglang.launch_server"
    path = log_file or _temporary()
    with path.open("wb") as log:
        begin = time.monotonic()
        process = start(module, flags, log, env or {})
        server = Server(f"http://127.0.0.1:{port}", process, path, 0.0)
        try:
            with held(process):
                _wait_ready(server, begin, timeout)
                yield server
        finally:
            if log_file is None:
                path.unlink()


def _temporary() -> Path:
    descriptor, name = tempfile.mkstemp(suffix=".log")
    os.close(descriptor)
    return Path(name)


def _wait_ready(server: Server, start: float, timeout: float) -> None:
    try:
        wait_until_ready(server.url, server.process, timeout - (time.monotonic() - start), "a server")
    except NotReady as error:
        raise RuntimeError(f"the server {error}:\n{server.log_text()[-3000:]}") from None
    server.ready_seconds = time.monotonic() - start
