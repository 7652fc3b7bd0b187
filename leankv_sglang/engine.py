"""SGLang's in-process engine with LeanKV beneath it."""

from __future__ import annotations

from typing import Any

from leankv_sglang.compression.profile import chosen_profile
from leankv_sglang.compression.request_params import resolve, salted
from leankv_sglang.config import LeanKVConfig, required_config
from leankv_sglang.environment import prepare_environment
from leankv_sglang.models import resolve_model_path
from leankv_sglang.models.check import check_model_folder
from leankv_sglang.plugin.machine import check_machine
from leankv_sglang.server.early_checks import check_served
from leankv_sglang.server.startup import apply_fields


def engine(model_path: str | None = None, leankv: LeanKVConfig | str | None = None, **server_args: Any) -> Any:
    """Start a ``sglang.Engine`` whose KV cache is LeanKV's.

    Call it under ``if __name__ == "__main__":``, as SGLang's own engine asks: it starts processes. One process holds
    engines of one configuration.

    Args:
        model_path: a folder, a .gguf file or a name of the catalog; None for the default model.
        leankv: how pages are compressed: a configuration, or a profile as ``--leankv-profile`` names it; None for the
            defaults: the near-lossless point of the profile shipped for the model, if there is one.
        server_args: as for ``sglang.Engine``.

    Returns:
        the engine; ``shutdown()`` it when done. Its ``generate`` and ``async_generate`` also take ``leankv``, the
        accuracy of a request, as the HTTP field of that name.

    Raises:
        LeanKVError: one sentence for arguments and models that LeanKV cannot go with.
    """
    folder = resolve_model_path(model_path)
    check_model_folder(
        folder,
        "model_path",
        weights=server_args.get("load_format") in (None, "auto", "safetensors"),
        tokenizer=not server_args.get("skip_tokenizer_init") and server_args.get("tokenizer_path") is None,
    )
    check_served(folder, server_args.get("tp_size") or 1)
    profile, config = None, leankv
    if not isinstance(config, LeanKVConfig):
        profile = chosen_profile(config, folder, server_args.get("page_size"))
        config = profile.config if profile else LeanKVConfig()
    check_machine()
    prepare_environment(config)
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    from leankv_sglang.plugin.selfcheck import check_launcher
    from leankv_sglang.server.install import install_tokenizer

    load_plugins()
    check_launcher()
    install_tokenizer()
    record = ServerArgs(**{"log_level": "error", **server_args, "model_path": folder})
    apply_fields(record, profile)
    return _engine_class()(server_args=record)


def _engine_class() -> Any:
    # A function, because importing sglang's engine picks its platform by the environment.
    from sglang.srt.entrypoints.engine import Engine

    class LeanKVEngine(Engine):  # type: ignore[misc]
        """SGLang's engine; requests take ``leankv`` as over HTTP: a profile, or thresholds."""

        def generate(self, *args: Any, leankv: Any = None, cache_salt: Any = None, **kwargs: Any) -> Any:
            """As ``sglang.Engine.generate``. Raises LeanKVError for an accuracy that cannot be."""
            return super().generate(*args, cache_salt=_salt(leankv, cache_salt), **kwargs)

        async def async_generate(self, *args: Any, leankv: Any = None, cache_salt: Any = None, **kwargs: Any) -> Any:
            """As ``sglang.Engine.async_generate``. Raises LeanKVError for an accuracy that cannot be."""
            return await super().async_generate(*args, cache_salt=_salt(leankv, cache_salt), **kwargs)

    return LeanKVEngine


def _salt(leankv: Any, cache_salt: Any) -> Any:
    return salted(resolve(leankv, required_config()), cache_salt)
