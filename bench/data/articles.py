"""Plain text of a Wikipedia dump: paragraphs whose markup can be taken off without a trace, and no others."""

from __future__ import annotations

import bz2
import html
import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree

SHORTEST = 200
"""Characters of a paragraph."""
FEWEST = 5
"""Paragraphs of an article."""
_DROPPED = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|table|timeline|code|source|blockquote|div)\b[^>]*>.*?</\1>|</?\w+[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")
_LINK = re.compile(r"\[\[(?![^\[\]|]*:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_PICTURE = re.compile(r"\[\[[^\[\]|]*:[^\[\]]*\]\]")
_ADDRESS = re.compile(r"\[https?://\S+ ?([^\]]*)\]")
_HOLLOW = re.compile(r"\s*\([\s,;:.]*\)")
"""What is left of brackets that held a template, such as a pronunciation."""
_LEFT = re.compile(r"[\[\]{}|<>=*#\\~]|https?:|''|\(\s*[,;]|\s[,.;]|,\s*,|\(\)|\"\"")


def text_of(dump: bytes, characters: int) -> str:
    """Articles of a dump (bz2 of XML) in its order, each under its title, until there are so many characters."""
    parts: list[str] = []
    total = 0
    for title, markup in _pages(dump):
        found = paragraphs(markup)
        if len(found) < FEWEST:
            continue
        parts.append(f" = {title} = \n\n" + "\n\n".join(found) + "\n")
        total += len(parts[-1])
        if total >= characters:
            break
    return "\n".join(parts)


def paragraphs(markup: str) -> list[str]:
    """The paragraphs of an article's wikitext that are sentences and nothing else."""
    text = _DROPPED.sub("", html.unescape(markup))
    for pattern, instead in ((_TEMPLATE, ""), (_LINK, r"\1"), (_PICTURE, "")):
        before = ""
        while before != text:  # they nest
            before, text = text, pattern.sub(instead, text)
    text = _HOLLOW.sub("", _ADDRESS.sub(r"\1", text)).replace("'''", "").replace("''", "")
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return [line for line in lines if _is_prose(line)]


def _is_prose(line: str) -> bool:
    return len(line) >= SHORTEST and line[0].isupper() and line.endswith((".", '."')) and not _LEFT.search(line)


def _pages(dump: bytes) -> Iterator[tuple[str, str]]:
    title = ""
    for _, node in ElementTree.iterparse(io.BytesIO(bz2.decompress(dump))):
        tag = node.tag.rpartition("}")[2]
        if tag == "title":
            title = node.text or ""
        elif tag == "text":
            yield title, node.text or ""
            node.clear()
