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
    stock = demo.Contestant("stock", "", seconds=[0.9, 1.0, 1.1], cached=0, asked=300)
    ours = demo.Contestant("ours", "", seconds=[0.1, 0.25, 0.3], cached=270, asked=300)
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


def test_a_server_that_ends_is_told_with_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "READY_SECONDS", 0.5)
    with pytest.raises(LeanKVError, match=r"nobody was not ready in 0 s; what it printed is in /"):  # noqa: SIM117
        with demo.server("nobody", "this", []) as one:
            demo.wait_until_ready(one)
