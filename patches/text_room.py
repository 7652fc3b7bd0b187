"""How long a text may be that can still fit: what is longer is refused before it is tokenized."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]

_KEEP = {"ByteLevel", "Digits", "Lowercase", "Metaspace", "NFD", "NFKD", "Prepend", "UnicodeScripts"}
# What drops whitespace, and nothing else.
_DROP_BLANKS = {"Strip", "Whitespace", "WhitespaceSplit"}
_COMPOSE: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
_STEPS = ("normalizers", "pretokenizers")


@dataclass(frozen=True)
class TextRoom:
    """Most characters of a text, which are counted when its tokenizer has dropped or composed some."""

    characters: int
    tokens: int
    form: Literal["NFC", "NFKC"] | None = None
    """A normal form that composes characters, after which they are counted."""
    blanks: bool = True
    """Whether whitespace counts."""
    dropped: str = ""
    """Characters that do not count."""

    def check(self, text: str) -> None:
        """Whether a text can fit.

        Raises:
            ValueError: one sentence with the most characters that can.
        """
        if len(text) <= self.characters:
            return
        left = unicodedata.normalize(self.form, text) if self.form and not text.isascii() else text
        if not self.blanks:
            left = "".join(left.split())
        if len(left) - sum(map(left.count, self.dropped)) > self.characters:
            raise ValueError(
                f"The prompt has {len(text)} characters; at most {self.characters} can fit into this model's "
                f"{self.tokens} tokens."
            )


def room_for_text(tokenizer: Any, tokens: int) -> TextRoom | None:
    """The room that so many tokens have for text: each of its characters is in one of them.

    Args:
        tokenizer: of transformers.
        tokens: the longest sequence.

    Returns:
        None where a token may stand for any number of characters, as the unknown one does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if backend is None:
        return None
    config = json.loads(backend.to_str())
    vocabulary = backend.get_vocab(with_added_tokens=True)
    steps = [*_steps(config["normalizer"]), *_steps(config["pre_tokenizer"])]
    dropped = _unspelt(config["model"], steps, vocabulary)
    if config["truncation"] or dropped is None:
        return None
    form = next((form for form in _COMPOSE if steps and steps[0]["type"] == form), None)
    if not all(_keeps(step) for step in steps[form is not None :]):
        return None
    # Such tokens take the whitespace beside them along.
    strips = any(token["lstrip"] or token["rstrip"] for token in config["added_tokens"])
    blanks = not strips and not any(step["type"] in _DROP_BLANKS for step in steps)
    return TextRoom(tokens * max(map(len, vocabulary)), tokens, form, blanks, dropped)


def _steps(config: Json | None) -> Iterator[Json]:
    """What a normalizer or pre-tokenizer does, one after the other."""
    if config is None:
        return
    inner = next((config[name] for name in _STEPS if name in config), None)
    if inner is None:
        yield config
    for one in inner or ():
        yield from _steps(one)


def _keeps(step: Json) -> bool:
    """Whether as many characters come out of a step as went in, or more, but for whitespace."""
    kind = step["type"]
    if kind in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    if kind == "Replace":
        return len(step["content"]) >= len(step["pattern"].get("String", step["content"] + " "))
    return kind in _KEEP or kind in _DROP_BLANKS


def _unspelt(model: Json, steps: list[Json], vocabulary: Mapping[str, int]) -> str | None:
    """Characters that become no token of their own; None where they cannot be told.

    There is a token for each byte, or for most: models without one for a control character drop it. Of a character of
    several bytes the later ones are there, whichever begins it.
    """
    if any(step["type"] == "ByteLevel" for step in steps):
        if model["type"] != "BPE":
            return None
        spelt = [_letter(byte) in vocabulary for byte in range(256)]
    elif model.get("byte_fallback"):
        spelt = [f"<0x{byte:02X}>" in vocabulary for byte in range(256)]
    else:
        return None
    return "".join(chr(byte) for byte in range(128) if not spelt[byte]) if all(spelt[0x80:0xC0]) else None


def _letter(byte: int) -> str:
    """How byte-level vocabularies write a byte: itself if it is seen, else the next letter from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in seen else chr(256 + sum(other not in seen for other in range(byte)))
