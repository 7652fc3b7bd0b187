"""SGLang's in-process engine with LeanKV beneath it."""

from __future__ import annotations

from typing import Any

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.launch_server import apply_fields, prepare_environment
from leankv_sglang.models import resolve_model_path


def engine(model_path: str | None = None, leankv: LeanKVConfig | None = None, **server_args: Any) -> Any:
    """Start a ``sglang.Engine`` whose KV cache is LeanKV's.

    Call it under ``if __name__ == "__main__":``, as SGLang's own engine asks: it starts processes. One process holds
    engines of one configuration.

    Args:
        model_path: a folder, a .gguf file or a name of the catalog; None for the default model.
        leankv: how pages are compressed; None for the defaults.
        server_args: as for ``sglang.Engine``.

    Returns:
        the engine; ``shutdown()`` it when done.

    Raises:
        LeanKVError: one sentence for arguments and models that LeanKV cannot go with.
    """
    prepare_environment(leankv or LeanKVConfig())
    import sglang
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    from leankv_sglang.selfcheck import check_launcher

    load_plugins()
    check_launcher()
    record = ServerArgs(**{"log_level": "error", **server_args, "model_path": resolve_model_path(model_path)})
    apply_fields(record, None)
    return sglang.Engine(server_args=record)
