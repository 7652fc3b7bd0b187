"""``python -m leankv_sglang.demo``: both caches have the same bytes, and what it shows is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from leankv_sglang import demo
from leankv_sglang.compression.build import make_layout
from leankv_sglang.compression.profile import find_profile
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.sizing import open_page_bytes, page_bytes
from leankv_sglang.models import ensure_model
from leankv_sglang.models.shape import read_shape
from tests.sentences import is_one_sentence

MEMORY = 128 << 20


class Ended:
    """A process that is over."""

    pid = 0

    def poll(self) -> int | None:
        return 0

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.fixture(scope="module")
def folder() -> str:
    return str(ensure_model(quiet=True))


def test_both_caches_have_the_same_bytes(folder: str) -> None:
    shape = read_shape(folder)
    stock, ours = demo.pools("near-lossless", folder, shape, MEMORY, 1)
    layout = make_layout(find_profile("near-lossless", folder).config, 128, shape.kv_heads, shape.head_dim)
    held = ours // 128 * page_bytes(layout, shape.layers)
    held += 2 * open_page_bytes(layout, shape.layers, shape.query_heads)
    assert 0 <= MEMORY - stock * shape.token_bytes < shape.token_bytes
    assert 0 <= MEMORY - held < 2 * page_bytes(layout, shape.layers)


def test_documents_are_of_one_length_and_differ(folder: str) -> None:
    found = demo.documents(folder, 4, 200)
    assert [len(one) for one in found] == [200] * 4
    assert len({tuple(one) for one in found}) == 4


def test_what_is_shown_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    stock = demo.Contestant("stock", "", Ended(), Path(), seconds=[0.9, 1.0, 1.1], cached=0, asked=300)
    ours = demo.Contestant("ours", "", Ended(), Path(), seconds=[0.1, 0.25, 0.3], cached=270, asked=300)
    demo.show([stock, ours], [1000, 4000], MEMORY)
    shown = capsys.readouterr().out
    assert "90%" in shown
    assert "1,000" in shown
    assert "ours   " + "█" * 36 + " " in shown  # nine tenths of 40
    assert "ours   " + "█" * 10 + " " in shown  # a quarter of the time


@pytest.mark.parametrize("line", ["--memory 1KiB", "--documents 0", "--length 5", "--memory much", "--profile tiny"])
def test_what_cannot_be_is_one_sentence(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(line.split()) == 2
    assert is_one_sentence(capsys.readouterr().err.strip().removeprefix("error: "))


def test_a_server_that_ends_is_told_at_once_with_its_own_log() -> None:
    with (
        pytest.raises(LeanKVError, match=r"nobody ended with status [12] at its start; see (/.*)\.$") as told,
        demo.server("nobody", "no.such.module", []) as one,
        demo.server("another", "http.server", []),
    ):
        demo.wait_until_ready(one)
    log = Path(str(told.value).split("see ")[1].removesuffix("."))
    assert "No module named" in log.read_text()
    log.unlink()


def test_a_server_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "READY_SECONDS", 0.5)
    with demo.server("silent", "calendar", ["--help"]) as one:
        monkeypatch.setattr(one.process, "poll", lambda: None)
        with pytest.raises(LeanKVError, match=f"silent was not ready in 0 s; see {one.log}"):
            demo.wait_until_ready(one)
