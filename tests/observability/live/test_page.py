"""The page is well-formed, keeps its own security policy, has a table behind each picture, and shows no prompt."""

from __future__ import annotations

import asyncio
import re
import time
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.observability.live.page.memory_view import chart_view, memory_view, rates_view
from leankv_sglang.observability.live.page.page import Page, text_maker
from leankv_sglang.observability.live.page.words import say_bytes, say_rate, say_ratio, say_seconds, say_share
from tests.observability.live.views import Schedulers, node_rows, request, sample

VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Tags that are open, and all that was met."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def shown(schedulers: Schedulers, show_text: bool = False, chosen: tuple[int, int, int] = (0, 1, 2)) -> str:
    class Tokenizer:
        def decode(self, tokens: tuple[int, ...]) -> str:
            return "<b>" + "".join(map(chr, tokens))

    decode = text_maker(Tokenizer()) if show_text else None
    page = Page(schedulers.watch, LeanKVConfig(), "a model", decode)
    return asyncio.run(page.document(chosen))


def answered(ranks: int = 1, **text: dict[str, list[int]]) -> Schedulers:
    schedulers, now = Schedulers(ranks), time.time()
    samples = [
        sample(now - 70),
        sample(now - 20, prompt=200),
        sample(now, prompt=400, cached_device=100, output_now=80),
    ]
    schedulers.answer_all(samples, node_rows(), text.get("text"))
    return schedulers


def test_a_page_before_the_first_answer_says_so() -> None:
    html = shown(Schedulers())
    read(html)
    assert "has not answered yet" in html
    assert "The tree is being read" in html


def test_nothing_in_the_page_breaks_its_security_policy() -> None:
    for tag, attributes in read(shown(answered())).met:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        assert tag != "style"
        for name in ("src", "href", "action"):
            target = attributes.get(name)
            assert target is None or re.match(r"leankv\b", target), "nothing from elsewhere"
        if tag == "script":
            assert attributes["src"]


def test_every_picture_has_words_and_a_table_and_every_field_a_label() -> None:
    html = shown(answered())
    reader = read(html)
    pictures = [a for tag, a in reader.met if tag == "svg" and a.get("role") == "img"]
    assert len(pictures) == 4
    assert all(picture.get("aria-label") for picture in pictures)
    assert html.count("<details>") == 4
    assert html.count("<table>") == 6
    assert all(a.get("scope") for tag, a in reader.met if tag == "th")
    ids = [a["id"] for _, a in reader.met if "id" in a and not str(a["id"]).startswith("hatch")]
    assert len(ids) == len(set(ids))


def test_the_tree_is_drawn_with_what_is_special_about_nodes() -> None:
    html = shown(answered())
    for word in (
        "hatch-trimmed)",
        "hatch-demoted)",
        "hatch-host)",
        "hatch-stored)",
        "edge locked",
        "accuracy balanced",
        "5 nodes",
    ):
        assert word in html
    assert "abcdef00: 64 tokens, 500 B" in html


def test_text_is_shown_only_where_it_may_be_and_escaped() -> None:
    told = {str(node): [104, 105, 60, 105, 62] for node in range(1, 5)}
    assert "hi&lt;i&gt;" not in shown(answered(text=told))
    html = shown(answered(text=told), show_text=True)
    assert "&lt;b&gt;hi&lt;i&gt;" in html
    assert "<b>hi" not in html


def test_ranks_can_be_chosen() -> None:
    html = shown(answered(ranks=2), chosen=(1, 0, 0))
    assert 'href="leankv?rank=0"' in html
    assert 'href="leankv?rank=1" aria-current="true"' in html


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_what_requests_call_themselves_is_escaped(rid: str) -> None:
    schedulers = answered()
    schedulers.watch.views[0].body["running"] = [request(rid=rid)]
    read(shown(schedulers))


def test_memory_adds_up_and_the_chart_has_both_lines() -> None:
    view = answered().watch.views[0]
    memory = memory_view(view)
    assert sum(float(line["width"][:-1]) for line in memory["parts"]) == 100 or memory["parts"]
    assert abs(sum(float(line["width"][:-1]) for line in memory["parts"]) - 100) < 0.01
    chart = chart_view(view)
    assert len(chart["held"].split()) == len(chart["raw"].split()) == 3
    held = float(chart["held"].split()[0].split(",")[1])
    raw = float(chart["raw"].split()[0].split(",")[1])
    assert held == 0.0 < raw, "640 tokens are the top, bf16 would hold fewer"


def test_rates_are_what_grew_by_what_passed() -> None:
    lines = dict(rates_view(answered().watch.views[0])["lines"])
    assert lines["prompt tokens"] == ["10/s", "5.71/s", "5.71/s"]
    assert lines["hit rate"][0] == "50.0%"
    assert lines["tokens generated"][0] == "4.00/s"


def test_words() -> None:
    assert [say_bytes(n) for n in (0, 1023, 2048, 3 << 30)] == ["0 B", "1,023 B", "2.0 KiB", "3.0 GiB"]
    assert [say_seconds(s) for s in (None, 0.02, 12.0, 600.0, 9000.0)] == ["-", "20 ms", "12.0 s", "10 min", "2 h"]
    assert (say_ratio(None), say_ratio(4.0), say_share(1, 0), say_share(1, 4)) == ("-", "4.00x", "-", "25.0%")
    assert [say_rate(r) for r in (None, 0.0, 0.5, 1234.0)] == ["-", "0/s", "0.50/s", "1,234/s"]
