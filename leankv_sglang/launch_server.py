"""``python -m leankv_sglang.launch_server``: SGLang's server with LeanKV pages beneath its radix tree."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leankv_sglang.config import CONFIG_ENV, DEFAULT_PAGE_SIZE, LeanKVConfig
from leankv_sglang.environment import has_accelerator, keep_rows_alike, prepare_cpu, unshadow_kernels
from leankv_sglang.errors import LeanKVError
from leankv_sglang.server.args import add_flags, config_from_args, split_args

if TYPE_CHECKING:
    from leankv_sglang.compression.profile import Profile

DEFAULT_CPU_REQUESTS = 32
DEFAULT_GPU_REQUESTS = 128
BIND_ENV = "SGLANG_CPU_OMP_THREADS_BIND"


def prepare_environment(config: LeanKVConfig) -> None:
    """Set what sglang and its child processes read from the environment; before sglang is imported."""
    unshadow_kernels()
    os.environ[CONFIG_ENV] = config.to_json()
    # The pool is sized once, at start.
    os.environ["SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"] = "0"
    if not has_accelerator():
        keep_rows_alike()
        prepare_cpu()


def default_fields(server_args: Any, on_cpu: bool) -> dict[str, Any]:
    """SGLang's fields that LeanKV sets where the user left them unset."""
    requests = DEFAULT_CPU_REQUESTS if on_cpu else DEFAULT_GPU_REQUESTS
    defaults = {
        "page_size": DEFAULT_PAGE_SIZE,
        "attention_backend": "leankv",
        "radix_cache_backend": "leankv",
        # Every request row owns a raw open page, so rows are not free here.
        "max_running_requests": requests,
    }
    return {name: value for name, value in defaults.items() if getattr(server_args, name) is None}


def bind_ranks(ranks: int) -> None:
    """Give each of several ranks on a CPU machine cores of its own, unless the user did.

    SGLang does this by itself only where there is a NUMA node for each.

    Raises:
        LeanKVError: where there are fewer cores than ranks.
    """
    if ranks < 2 or has_accelerator() or BIND_ENV in os.environ:
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks:
        raise LeanKVError(f"LeanKV cannot start: {ranks} ranks (--tp-size times --dp-size) want as many cores.")
    each = len(cores) // ranks
    groups = [cores[i * each : (i + 1) * each] for i in range(ranks)]
    os.environ[BIND_ENV] = "|".join(",".join(str(core) for core in group) for group in groups)


def apply_fields(server_args: Any, profile: Profile | None) -> None:
    """Check the flags, fill in our defaults, resolve, and check the model against the profile.

    Raises:
        LeanKVError: one sentence for anything LeanKV cannot go with.
    """
    from sglang.srt.arg_groups.overrides import model_config_of

    from leankv_sglang.compression.profile import Shape
    from leankv_sglang.plugin.compatibility import check_environment, check_flags

    check_environment()
    check_flags(server_args)
    bind_ranks((server_args.tp_size or 1) * (server_args.dp_size or 1))
    if profile is not None and server_args.page_size is None:
        server_args.page_size = profile.page_size
    for name, value in default_fields(server_args, not has_accelerator()).items():
        setattr(server_args, name, value)
    if server_args.enable_metrics and not server_args.stat_loggers:
        from leankv_sglang.observability.metrics import LeanKVMetricsCollector

        server_args.stat_loggers = {"scheduler": LeanKVMetricsCollector}
    server_args.resolve_once()
    if profile is not None:
        model = model_config_of(server_args)
        shape = Shape(model.num_hidden_layers, model.get_total_num_kv_heads(), model.head_dim)
        profile.check_model(shape, server_args.model_path)
        profile.check_page_size(server_args.page_size)


def _merge_config_file(argv: list[str]) -> list[str]:
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    add_flags(parser)
    return ConfigArgumentMerger(parser).merge_config_with_args(argv)


def _print_help() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="python -m leankv_sglang.launch_server")
    add_flags(parser)
    ServerArgs.add_cli_args(parser)
    parser.print_help()


def _with_model_path(rest: list[str]) -> tuple[list[str], str]:
    """Replace the model argument by a folder on disk, and name it; without one, the default model's."""
    from leankv_sglang.models import resolve_model_path

    for i, arg in enumerate(rest):
        for flag in ("--model-path", "--model"):
            if arg == flag and i + 1 < len(rest):
                folder = resolve_model_path(rest[i + 1])
                return [*rest[: i + 1], folder, *rest[i + 2 :]], folder
            if arg.startswith(f"{flag}="):
                folder = resolve_model_path(arg.split("=", 1)[1])
                return [*rest[:i], f"{flag}={folder}", *rest[i + 1 :]], folder
    folder = resolve_model_path(None)
    return ["--model-path", folder, *rest], folder


def _page_size(rest: list[str]) -> int | None:
    """The page size among SGLang's flags; what is no number is left for SGLang to refuse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--page-size", nargs="?")
    found: str | None = parser.parse_known_args(rest)[0].page_size
    return int(found) if found and found.isdecimal() else None


def launch(argv: Sequence[str]) -> None:
    """Start the server and serve until stopped.

    Raises:
        LeanKVError: one sentence for flags, models and modes that cannot be served.
    """
    if "--config" in argv:
        # Merging the file imports sglang, which picks its platform by this environment.
        prepare_environment(LeanKVConfig())
        argv = _merge_config_file(list(argv))
    ours, rest = split_args(argv)
    if "-h" in rest or "--help" in rest:
        prepare_environment(LeanKVConfig())
        _print_help()
        return
    rest, model = _with_model_path(rest)
    config, profile = config_from_args(ours, model, _page_size(rest))
    prepare_environment(config)

    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from leankv_sglang.plugin.compatibility import APP_PATH, APP_PATH_ENV
    from leankv_sglang.plugin.selfcheck import check_launcher
    from leankv_sglang.server.banner import print_summary

    load_plugins()
    check_launcher()
    server_args = prepare_server_args(rest)
    apply_fields(server_args, profile)
    print_summary(server_args, config)

    # Tokenizer workers (--tokenizer-worker-num) import the app by its name, and this process serves it otherwise.
    os.environ[APP_PATH_ENV] = APP_PATH
    importlib.import_module(APP_PATH.partition(":")[0])

    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def main() -> None:
    """Command-line entry: errors are one sentence, exit status 2."""
    try:
        launch(sys.argv[1:])
    except LeanKVError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
