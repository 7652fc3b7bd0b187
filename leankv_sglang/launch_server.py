"""``python -m leankv_sglang.launch_server``: SGLang's server with LeanKV pages beneath its radix tree."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from leankv_sglang.command import exit_code
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.environment import APP_PATH, APP_PATH_ENV, prepare_environment
from leankv_sglang.plugin.machine import check_machine
from leankv_sglang.server.args import (
    config_from_args,
    merge_config_file,
    page_size_of,
    print_help,
    split_args,
    with_model_path,
)


def launch(argv: Sequence[str]) -> None:
    """Start the server and serve until stopped.

    Raises:
        LeanKVError: one sentence for flags, models and modes that cannot be served.
    """
    if "--config" in argv:
        # Merging the file imports sglang, which picks its platform by this environment.
        prepare_environment(LeanKVConfig())
        argv = merge_config_file(argv)
    ours, rest = split_args(argv)
    if "-h" in rest or "--help" in rest:
        prepare_environment(LeanKVConfig())
        print_help()
        return
    rest, model = with_model_path(rest)
    config, profile = config_from_args(ours, model, page_size_of(rest))
    check_machine()
    prepare_environment(config)

    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from leankv_sglang.plugin.selfcheck import check_launcher
    from leankv_sglang.server.banner import print_banner
    from leankv_sglang.server.startup import apply_fields

    load_plugins()
    check_launcher()
    server_args = prepare_server_args(rest)
    apply_fields(server_args, profile)
    print_banner(server_args, config)

    # Tokenizer workers (--tokenizer-worker-num) import the app by its name, and this process serves it otherwise.
    os.environ[APP_PATH_ENV] = APP_PATH
    importlib.import_module(APP_PATH.partition(":")[0])

    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def main() -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    return exit_code(lambda: launch(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
