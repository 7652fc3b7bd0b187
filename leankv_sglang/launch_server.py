"""``python -m leankv_sglang.launch_server``: SGLang's server with LeanKV pages beneath its radix tree.

Every process of a server runs this module first, so what takes time to import is imported where it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from leankv_sglang.command import exit_code, usage_in_a_sentence
from leankv_sglang.plugin.lifeline import hold_on


def launch(argv: Sequence[str]) -> None:
    """Start the server and serve until stopped.

    Raises:
        LeanKVError: one sentence for flags, models and modes that cannot be served, and for a start that failed.
        KeyboardInterrupt: when interrupted.
    """
    from leankv_sglang.plugin.faults import ChildFailed, begin_report, end_report, start_error

    path = begin_report()
    try:
        with usage_in_a_sentence():
            server_args = _prepare(argv)
        if server_args is not None:
            _serve(server_args)
    except (ChildFailed, Exception) as error:
        raise start_error(error, path) from None
    finally:
        end_report(path)


def _prepare(argv: Sequence[str]) -> Any:
    """Everything before SGLang starts processes: its arguments, resolved, or None where only help was asked for."""
    from leankv_sglang.config import LeanKVConfig
    from leankv_sglang.environment import APP_PATH, APP_PATH_ENV, DRAIN_ENV, prepare_environment
    from leankv_sglang.plugin.compatibility import check_flags, stated_flags
    from leankv_sglang.plugin.machine import check_machine
    from leankv_sglang.server import args
    from leankv_sglang.server.early_checks import check_model
    from leankv_sglang.server.ports import check_ports

    if "--config" in argv:
        # Merging the file imports sglang, which picks its platform by this environment.
        prepare_environment(LeanKVConfig())
        argv = args.merge_config_file(argv)
    ours, rest = args.split_args(argv)
    if "-h" in rest or "--help" in rest:
        if not (ours_alone := "leankv" in rest):
            prepare_environment(LeanKVConfig())
        args.print_help(ours_alone)
        return None
    os.environ[DRAIN_ENV] = str(args.drain_seconds(ours))
    check_flags(stated_flags(rest))
    check_ports(rest)
    rest, model = args.with_model_path(rest)
    check_model(rest, model, offloads=bool(ours.leankv_store or ours.leankv_host_memory))
    config, profile = args.config_from_args(ours, model, args.page_size_of(rest))
    check_machine()
    prepare_environment(config)

    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from leankv_sglang.plugin.selfcheck import check_launcher
    from leankv_sglang.server.banner import print_banner
    from leankv_sglang.server.install import install_launcher
    from leankv_sglang.server.startup import apply_fields

    load_plugins()
    check_launcher()
    install_launcher()
    server_args = prepare_server_args(rest)
    apply_fields(server_args, profile)
    print_banner(server_args, config)

    # Tokenizer workers (--tokenizer-worker-num) import the app by its name, and this process serves it otherwise.
    os.environ[APP_PATH_ENV] = APP_PATH
    importlib.import_module(APP_PATH.partition(":")[0])
    return server_args


def _serve(server_args: Any) -> None:
    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    from leankv_patches import drain

    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    if drain.was_interrupted():
        raise KeyboardInterrupt


def main() -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    return exit_code(lambda: launch(sys.argv[1:]))


# How multiprocessing calls it in the processes that it spawns.
if __name__ == "__mp_main__":
    hold_on()

if __name__ == "__main__":
    sys.exit(main())
