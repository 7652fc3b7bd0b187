"""Target: ``Req._check_str_based_finish`` of sglang 0.5.23, and the ``re`` that its module searches with.

Reason: a client's ``stop_regex`` is searched in every step, in the scheduler, by an engine that goes back over what it
tried: 30 characters and a pattern of eight are enough for hours. Here a search that takes too long ends its request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import regex

from leankv_patches import hook

_MODULE = "sglang.srt.managers.schedule_batch"
TARGET = f"{_MODULE}.Req._check_str_based_finish"
LONGEST_SECONDS = 1.0
"""A search that takes longer ends its request."""

logger = logging.getLogger(__name__)


class BoundedRe:
    """Python's ``re``, but for a ``search`` that ends in time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    @staticmethod
    def search(pattern: str, text: str, flags: int = 0) -> Any:
        """As ``re.search``.

        Raises:
            re.error: where the pattern is none, or the search takes too long.
        """
        try:
            return regex.search(pattern, text, flags, timeout=LONGEST_SECONDS)
        except TimeoutError:
            raise re.error(f"searching takes longer than {LONGEST_SECONDS:g} s") from None
        except regex.error as error:
            raise re.error(str(error)) from None


def check(original: Callable[..., bool], req: Any, *args: Any, **named: Any) -> bool:
    """Whether a request ends here; one whose pattern cannot be searched does."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    try:
        return original(req, *args, **named)
    except (re.error, RecursionError) as error:
        logger.warning("Request %s ends: its stop_regex cannot be searched (%s).", req.rid, error)
        sentence = f"stop_regex cannot be searched: {error}."
        req.finished_reason = FINISH_ABORT(sentence, HTTPStatus.BAD_REQUEST, "BadRequestError")
        return True


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    from sglang.srt.managers import schedule_batch

    schedule_batch.re = BoundedRe()
    hook.register(TARGET, check, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take, else None."""
    from sglang.srt.managers import schedule_batch

    if not isinstance(schedule_batch.re, BoundedRe):
        return f"the search for stop_regex ({_MODULE}.re) could not be replaced"
    return hook.problem(TARGET, "the search for stop_regex", ["self", "new_accepted_len"])
