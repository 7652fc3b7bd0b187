"""Whether the places that a configuration names can be had, before anything is loaded."""

from __future__ import annotations

from leankv_sglang.config import LeanKVConfig


def check_places(config: LeanKVConfig) -> None:
    """Look at the folder, or at the Mooncake master.

    Raises:
        LeanKVError: one sentence saying what of ``--leankv-store`` is wrong.
    """
    if config.store is None:
        return
    if config.store.startswith("file:"):
        from leankv_sglang.offload.disk import check_folder

        check_folder(config.store.removeprefix("file:"))
    else:
        from leankv_sglang.offload.mooncake import check_master, parse_address

        check_master(parse_address(config.store))
