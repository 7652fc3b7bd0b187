"""What can be said of a model before SGLang is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leankv_sglang.environment import has_accelerator
from leankv_sglang.errors import LeanKVError
from leankv_sglang.json_file import read_json
from leankv_sglang.models.check import check_model_folder, check_tokenizer
from leankv_sglang.models.early import early_model, wants_gpu
from leankv_sglang.models.ranks import uneven_model
from leankv_sglang.models.shape import windows_of
from leankv_sglang.plugin import compatibility


def check_model(rest: Sequence[str], model: str, offloads: bool = False) -> None:
    """Check that a model is one that is served, and its folder for what SGLang's flags want to be there.

    Args:
        rest: SGLang's flags.
        model: its folder.
        offloads: whether pages are kept beyond the device.

    Raises:
        LeanKVError: the first thing that is wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tokenizer-path", nargs="?")
    parser.add_argument("--load-format", nargs="?")
    parser.add_argument("--skip-tokenizer-init", action="store_true")
    parser.add_argument("--tp-size", "--tensor-parallel-size", nargs="?")
    found = parser.parse_known_args(list(rest))[0]
    own_tokenizer = not found.skip_tokenizer_init and found.tokenizer_path is None
    # First what no weights would mend: nobody should fetch them in vain.
    check_model_folder(model, weights=False, tokenizer=False)
    check_served(model, int(found.tp_size) if (found.tp_size or "").isdecimal() else 1, offloads)
    check_model_folder(model, weights=found.load_format in (None, "auto", "safetensors"), tokenizer=own_tokenizer)
    if found.tokenizer_path and not found.skip_tokenizer_init:
        check_tokenizer(found.tokenizer_path)


def check_served(model: str, ranks: int = 1, offloads: bool = False) -> None:
    """Check a model by its ``config.json``, before SGLang is imported, which takes its time and may raise first.

    Args:
        model: its folder.
        ranks: that share its heads.
        offloads: whether pages are kept beyond the device.

    Raises:
        LeanKVError: one sentence saying why it cannot be served.
    """
    config = check_served_anywhere(model)
    if config is None:
        return
    if (name := wants_gpu(config)) and not has_accelerator():
        raise LeanKVError(f"LeanKV cannot serve this model here: SGLang runs {name} on GPUs alone.")
    compatibility.check_offload(windows_of(config) is not None, offloads)
    if ranks > 1 and has_accelerator() and (why := uneven_model(config, ranks)):
        raise LeanKVError(f"LeanKV cannot serve this model with --tp-size {ranks}: its {why}.")


def check_served_anywhere(model: str) -> dict[str, Any] | None:
    """Check a model by its ``config.json`` for what no machine serves.

    Returns:
        What the file holds; None for a name of a hub.

    Raises:
        LeanKVError: one sentence saying why it cannot be served.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        return None
    config = read_json(path, lambda why: LeanKVError(f"{path} {why}."))
    if not isinstance(config, dict):
        raise LeanKVError(f"{path} is not a JSON object; copy the model's own config.json there.")
    compatibility.check_model(early_model(config))
    return config
