"""A server that was told to end does so in time, and every client gets an answer."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from leankv_patches import control_waits, drain


class Manager:
    """Of a TokenizerManager what ends requests; its scheduler aborts what it is asked to, or says nothing."""

    def __init__(self, requests: int, scheduler_lives: bool) -> None:
        self.rid_to_state = {str(i): SimpleNamespace() for i in range(requests)}
        self.scheduler_lives, self.aborted, self.given_up = scheduler_lives, 0, []

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        """All of them."""
        assert abort_all
        self.aborted += 1
        if self.scheduler_lives:
            self.rid_to_state.clear()

    def _handle_abort_req(self, request: Any) -> None:
        self.given_up.append((request.rid, request.finished_reason["status_code"]))
        del self.rid_to_state[request.rid]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a test's length."""
    monkeypatch.setattr(drain, "_POLL", 0.01)
    monkeypatch.setattr(drain, "ABORT_SECONDS", 0.05)
    monkeypatch.setattr(drain._interrupted, "is_set", lambda: False)
    monkeypatch.setattr(drain._hurried, "is_set", lambda: False)
    monkeypatch.setattr(control_waits, "_ended", False)


def test_requests_may_finish() -> None:
    manager = Manager(1, True)

    async def both() -> None:
        async def finish() -> None:
            await asyncio.sleep(0.05)
            manager.rid_to_state.clear()

        await asyncio.gather(finish(), drain.end_requests(manager, 60.0))

    asyncio.run(both())
    assert manager.aborted == 0


@pytest.mark.parametrize("scheduler_lives", [True, False])
def test_what_runs_on_is_aborted_and_answered(scheduler_lives: bool) -> None:
    manager = Manager(2, scheduler_lives)
    asyncio.run(drain.end_requests(manager, 0.05))
    assert (manager.aborted, manager.rid_to_state) == (1, {})
    assert manager.given_up == ([] if scheduler_lives else [("0", 503), ("1", 503)])


@pytest.mark.parametrize("told", ["_interrupted", "_hurried"])
def test_an_interrupted_server_does_not_wait(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(getattr(drain, told), "is_set", lambda: True)
    manager, begun = Manager(1, True), time.monotonic()
    asyncio.run(drain.end_requests(manager, 3600.0))
    assert manager.aborted == 1
    assert time.monotonic() - begun < 60


def test_control_requests_may_finish_and_are_given_up_else() -> None:
    async def answer(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "answer"

    async def run() -> None:
        asked = [asyncio.create_task(control_waits.wait(answer, seconds)) for seconds in (0.05, 3600.0)]
        await asyncio.sleep(0)
        await drain.end_requests(Manager(0, True), 1.0)
        came = await asyncio.gather(*asked, return_exceptions=True)
        assert came[0] == "answer"
        assert isinstance(came[1], control_waits.ControlError)

    asyncio.run(run())
