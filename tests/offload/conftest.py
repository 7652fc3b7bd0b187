"""SGLang wants to know its arguments before a tree is built."""

from __future__ import annotations

import pytest
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler


@pytest.fixture(autouse=True)
def _server_args() -> None:
    set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", page_size=16))
