"""Lines of sglang's log that say nothing, or of us what is not so."""

from __future__ import annotations

import logging

ALWAYS = {
    "sglang.srt.models.registry": "Ignore import error when loading ",
    # Four hundred resolved flags on one line; /server_info has them.
    "sglang.srt.entrypoints.engine": "server_args=",
}
UNDER_LEANKV = {
    # One line for each of our patches, in every process; the self-check names those that did not take.
    "sglang.srt.plugins.hook_registry": "Applied ",
    # It is our own attention, which is threaded and vectorized.
    "sglang.srt.utils.common": "CPU device enabled, using torch native backend, low performance expected",
}


class _Quiet(logging.Filter):
    """Drops messages that start with a prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a message to drop."""
        return not record.getMessage().startswith(self.prefix)


def quiet(noise: dict[str, str]) -> None:
    """Drop messages, by logger and how they begin, from now on in this process."""
    for name, prefix in noise.items():
        logging.getLogger(name).addFilter(_Quiet(prefix))
