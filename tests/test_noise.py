"""What is dropped of sglang's log, and what is not."""

from __future__ import annotations

import logging
from importlib import import_module

import pytest

from leankv_sglang.noise import UNDER_LEANKV, quiet


def test_what_is_dropped_is_what_sglang_says() -> None:
    """Word for word, so that a new release cannot bring it back unseen."""
    for name, text in UNDER_LEANKV.items():
        source = import_module(name).__spec__.origin
        assert source is not None
        with open(source) as file:
            assert text in file.read()


def test_other_lines_stay(caplog: pytest.LogCaptureFixture) -> None:
    quiet({"some.logger": "Nothing to"})
    with caplog.at_level(logging.INFO):
        for text in ("Nothing to see", "Something to see"):
            logging.getLogger("some.logger").info(text)
    assert caplog.messages == ["Something to see"]
