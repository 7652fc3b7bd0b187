"""Send random requests one after the other; look after each whether the server still answers as it did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from tqdm import tqdm

from bench.common.server import Server
from bench.request_fuzz.bodies import BODIES, PROMPT, requests_of

PATIENCE = 30.0
"""Seconds after which a client leaves."""


@dataclass
class Outcome:
    """What became of the requests."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By route and kind of answer: ``2xx``, ``4xx``, ``5xx``, ``left``."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Requests answered with HTTP 500 and above."""

    def rows(self) -> list[dict[str, Any]]:
        """One for each route."""
        kinds = ("2xx", "4xx", "5xx", "left")
        routes = [route for route in BODIES if any(r == route for r, _ in self.answers)]
        return [{"route": route, **{kind: self.answers[route, kind] for kind in kinds}} for route in routes]

    def never_answered(self, many: int) -> list[str]:
        """Routes that were asked so often and never gave an answer."""
        asked: Counter[str] = Counter()
        for (route, _), count in self.answers.items():
            asked[route] += count
        return [route for route in BODIES if asked[route] >= many and not self.answers[route, "2xx"]]


def fuzz(
    server: Server, count: int, seed: int = 0, routes: Sequence[str] = tuple(BODIES), quiet: bool = False
) -> Outcome:
    """Send ``count`` requests; the same ones for a seed.

    Args:
        server: has nothing else to do; its model is served as ``SERVED_NAME``.
        count: of requests.
        seed: of the bodies.
        routes: the routes to try.
        quiet: no progress bar.

    Raises:
        RuntimeError: when the server ends or no longer answers as it did, with the request at fault.
    """
    outcome, expected = Outcome(), _known_answer(server)
    progress = tqdm(total=count, unit="request", disable=quiet)

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(request=requests_of(routes))
    def one(request: tuple[str, Any]) -> None:
        route, body = request
        status, text = send(server, route, body)
        outcome.answers[route, status] += 1
        progress.update()
        if status == "5xx":
            outcome.failures.append({"route": route, "body": shown(body), "answer": text[:300]})
        try:
            answer = _known_answer(server)
        except requests.RequestException as error:
            answer = f"{error}"
        if server.process.poll() is not None or answer != expected:
            raise RuntimeError(f"after {route} {shown(body)} the server does not answer as before, but: {answer}")

    with progress:
        one()
    return outcome


def send(server: Server, route: str, body: Any) -> tuple[str, str]:
    """The kind of answer and its text."""
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    try:
        answer = requests.post(server.url + route, data=data, headers=headers, timeout=PATIENCE)
    except requests.Timeout:
        return "left", ""
    except requests.RequestException as error:
        return "5xx", f"{error}"
    return f"{answer.status_code // 100}xx", answer.text


def shown(body: Any) -> str:
    """A body as JSON, long ones cut."""
    text = json.dumps(body)
    return text if len(text) <= 600 else f"{text[:600]}[... {len(text)} characters]"


def _known_answer(server: Server) -> Any:
    body = {"input_ids": PROMPT[::-1], "sampling_params": {"max_new_tokens": 2, "temperature": 0, "ignore_eos": True}}
    answer = requests.post(server.url + "/generate", json=body, timeout=2 * PATIENCE)
    return answer.json().get("output_ids") if answer.ok else answer.text[:300]
