"""How servers end: told to while busy, interrupted, and before they began."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.common.server import Server
from tests.e2e.forked import Zygote
from tests.processes import descendants, left_after

FLAGS = ("--max-total-tokens", "8192", "--leankv-profile", "none", "--leankv-drain-seconds", "0.5")


class _Asked:
    """A request of 7,000 tokens, and what came of it."""

    def __init__(self, server: Server) -> None:
        self.came: Any = None
        self._thread = threading.Thread(target=self._ask, args=(server.url,))
        self._thread.start()
        while not (server.info().get("leankv") or {}) or "Decode" not in server.log_text():
            time.sleep(0.05)

    def _ask(self, url: str) -> None:
        sampling = {"max_new_tokens": 7000, "ignore_eos": True}
        body = {"input_ids": [5] * 40, "sampling_params": sampling}
        try:
            self.came = requests.post(url + "/generate", json=body, timeout=120)
        except requests.RequestException as error:
            self.came = error

    def answer(self) -> Any:
        self._thread.join(60)
        return self.came


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_busy_server_ends_in_time_and_answers(tiny: Path, zygote: Zygote, number: int, code: int) -> None:
    """All of its processes get the signal, as from a terminal or a process manager."""
    with zygote.serve("--model-path", str(tiny), *FLAGS) as server:
        asked, children = _Asked(server), descendants(server.process.pid)
        os.killpg(server.process.pid, number)
        assert server.process.wait(30) == code
        assert asked.answer().json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert not left_after(5, children)
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize(("number", "code", "all_of_them"), [(signal.SIGTERM, 0, True), (signal.SIGINT, 130, False)])
def test_several_tokenizer_workers_end_like_one(
    tiny: Path, zygote: Zygote, number: int, code: int, all_of_them: bool
) -> None:
    """Also where the launcher alone gets the signal; who has nothing to do leaves the others their scheduler."""
    workers = ("--tokenizer-worker-num", "2")
    with zygote.serve("--model-path", str(tiny), *FLAGS, *workers) as server:
        asked, children = _Asked(server), descendants(server.process.pid)
        (os.killpg if all_of_them else os.kill)(server.process.pid, number)
        assert server.process.wait(30) == code
        assert asked.answer().json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert not left_after(5, children)
        printed = server.log_text()
        assert "Traceback" not in printed
        assert "cannot be told" not in printed
        assert "crashed" not in printed


class _Pending:
    """A control request that a scheduler does not answer any more, and what came of it."""

    def __init__(self, server: Server, route: str, body: dict[str, Any] | None = None) -> None:
        self.came: Any = None
        self._thread = threading.Thread(target=self._ask, args=(server.url + route, body))
        self._thread.start()
        # Neither it nor its arrival can be seen from here.
        time.sleep(0.5)

    def _ask(self, url: str, body: dict[str, Any] | None) -> None:
        try:
            self.came = requests.request("POST" if body else "GET", url, json=body, timeout=120).status_code
        except requests.RequestException as error:
            self.came = error

    def answer(self) -> Any:
        self._thread.join(60)
        return self.came


def _hung(server: Server) -> list[int]:
    """The processes of a server whose scheduler now waits half an hour for others; who asked for that has left."""
    group = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 2}
    with pytest.raises(requests.ReadTimeout):
        requests.post(server.url + "/init_weights_update_group", json=group, timeout=1)
    return descendants(server.process.pid)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)])
def test_a_server_whose_scheduler_hangs_ends(
    tiny: Path, zygote: Zygote, signals: tuple[int, ...], workers: int
) -> None:
    """Whoever waits for it is answered; a second signal does not wait for the scheduler, nor for the drain."""
    drain = "3600" if len(signals) > 1 and signals[0] == signal.SIGTERM else "0.5"
    flags = (*FLAGS, "--leankv-drain-seconds", drain, "--tokenizer-worker-num", str(workers))
    with zygote.serve("--model-path", str(tiny), *flags) as server:
        children = _hung(server)
        asked = _Pending(server, "/server_info")
        for number in signals:
            os.kill(server.process.pid, number)
            # Signals that come closer are one.
            time.sleep(1.5)
        assert server.process.wait(60) == (130 if signal.SIGINT in signals else 0)
        assert asked.answer() == 503
        assert not left_after(5, children)
        assert "Traceback" not in server.log_text()


def test_a_scheduler_that_cannot_start_is_one_sentence(tiny: Path, tmp_path: Path, zygote: Zygote) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    code, printed = zygote.run(["--model-path", str(folder), *FLAGS], {})
    assert code == 2
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: LeanKV cannot start: SGLang says ")
    Path(last.rpartition(" in ")[2].removesuffix(").")).unlink()
