"""Our command-line flags, beside SGLang's."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leankv_sglang.byte_size import parse_bytes, say_bytes
from leankv_sglang.compression.profile import NO_PROFILE, chosen_profile
from leankv_sglang.compression.profile_file import Profile
from leankv_sglang.config import (
    DEFAULT_STORE_SIZE,
    LOADS,
    MATCHES,
    ROTATIONS,
    SIGNIFICANCE_NAMES,
    TIER_NAMES,
    LeanKVConfig,
    one_of,
    parse_tiers,
)
from leankv_sglang.environment import DEFAULT_DRAIN_SECONDS
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import DEFAULT_MODEL, resolve_model_path

LEAST_PLACE = 2**20
"""Bytes; a place beyond the device that is smaller would hold next to nothing."""
_METHOD_FLAGS = (
    "tiers",
    "alpha_high",
    "alpha_mid",
    "alpha_low",
    "rotation",
    "significance",
    "near_pages",
    "keep_first",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the ``--leankv-*`` flags as a group of their own. Defaults are None: LeanKVConfig knows them."""
    group = parser.add_argument_group("LeanKV", "Compressed KV pages beneath the radix tree (on by default here)")
    group.add_argument(
        "--leankv-tiers",
        metavar="HIGH[,MID][,LOW]",
        help=f"formats of two or three tiers, each of {', '.join(TIER_NAMES)}, or a single one for all tokens "
        "(default: k8v4,k4v2)",
    )
    group.add_argument(
        "--leankv-alpha-high",
        type=float,
        metavar="A",
        help="a token above A times uniform attention is kept at the high tier (default: 1)",
    )
    group.add_argument(
        "--leankv-alpha-mid",
        type=float,
        metavar="A",
        help="with three tiers: a token above A times uniform attention, and not high, is kept at the middle one",
    )
    group.add_argument(
        "--leankv-alpha-low",
        type=float,
        metavar="A",
        help="a token below A times uniform attention is pruned from the far view (default: 0, prunes nothing)",
    )
    group.add_argument(
        "--leankv-rotation", metavar="|".join(ROTATIONS), help="rotation before quantizing (default: hadamard)"
    )
    group.add_argument(
        "--leankv-significance",
        metavar="|".join(SIGNIFICANCE_NAMES),
        help="how tokens are scored; none makes every far token low (default: attention)",
    )
    group.add_argument(
        "--leankv-near-pages",
        "--leankv-window",
        dest="leankv_near_pages",
        type=int,
        metavar="PAGES",
        help="pages before a token's own page that it reads with every token high (default: 1)",
    )
    group.add_argument(
        "--leankv-keep-first",
        type=int,
        metavar="PAGES",
        help="pages at the start of a sequence of which nothing is pruned, nor low where there are three tiers "
        "(default: 0)",
    )
    group.add_argument(
        "--leankv-profile",
        metavar="NAME|FILE[:NAME]",
        help="calibrated thresholds per layer and KV head, and the flags above: near-lossless, balanced or small of "
        "the profile that comes with the package for this model, a file of python -m leankv_sglang.calibrate, or none "
        "(default: near-lossless, if one comes with the package and none of the flags above is given)",
    )
    group.add_argument(
        "--leankv-demote",
        action="store_true",
        help="under memory pressure cut cached pages down to the low tier before dropping them (default: off)",
    )
    group.add_argument(
        "--leankv-match",
        metavar="|".join(MATCHES),
        help="relaxed lets a hit read pages that were demoted, so that its answer may differ from a miss "
        "(default: strict)",
    )
    group.add_argument(
        "--leankv-host-memory",
        metavar="SIZE",
        help="main memory for pages that leave the device, such as 8GiB: a hit there is loaded back (default: none)",
    )
    group.add_argument(
        "--leankv-store",
        metavar="file:FOLDER|mooncake://MASTER:PORT",
        help="keep pages in a folder, or in a Mooncake Store; either outlives the server, and servers share it "
        "(default: nowhere)",
    )
    group.add_argument(
        "--leankv-store-size",
        metavar="SIZE",
        help="what all pages in that folder may take, or what this server gives the Mooncake Store of its memory "
        f"(default: {DEFAULT_STORE_SIZE >> 30}GiB)",
    )
    group.add_argument(
        "--leankv-load",
        metavar="|".join(LOADS),
        help="whether prefixes come from that store: auto where that was seen to be quicker than computing them; never "
        "only fills it (default: auto)",
    )
    group.add_argument(
        "--leankv-drain-seconds",
        type=float,
        metavar="SECONDS",
        help="how long requests may go on after SIGTERM before they are aborted and the server ends (default: "
        f"{DEFAULT_DRAIN_SECONDS:g})",
    )
    group.add_argument(
        "--leankv-show-text",
        action="store_true",
        help="let the live page (/leankv) show how cached prompts begin; without it nobody sees any of their text "
        "(default: off)",
    )
    group.add_argument(
        "--leankv-kernels", metavar="NAME", help="backend of the compression kernels (default: auto, by device)"
    )


def config_from_args(
    args: argparse.Namespace, model: str, page_size: int | None = None
) -> tuple[LeanKVConfig, Profile | None]:
    """The validated configuration for the model in a folder, and the profile it came from.

    Args:
        args: our flags.
        model: the model's folder.
        page_size: of the server, where it was said.

    Raises:
        LeanKVError: one sentence naming the flag that is wrong.
    """
    kernels = "auto" if args.leankv_kernels is None else args.leankv_kernels
    from leankv_kernels import available_backends

    if kernels not in ("auto", *available_backends()):
        raise LeanKVError(f"--leankv-kernels takes auto, {', '.join(available_backends())}, not {kernels!r}.")
    given = {name: value for name in _METHOD_FLAGS if (value := getattr(args, f"leankv_{name}")) is not None}
    cache = {
        "demote": args.leankv_demote,
        "match": "strict" if args.leankv_match is None else args.leankv_match,
        "show_text": args.leankv_show_text,
        **offload_fields(args),
    }
    if given and args.leankv_profile not in (None, NO_PROFILE):
        names = ", ".join(f"--leankv-{n.replace('_', '-')}" for n in given)
        raise LeanKVError(f"--leankv-profile decides {names} too; give the profile or the flags, not both.")
    profile = None if given else chosen_profile(args.leankv_profile, model, page_size, kernels)
    if profile is not None:
        profile = replace(profile, config=replace(profile.config, **cache))
        return profile.config, profile
    if "tiers" in given:
        given["high"], given["mid"], given["low"] = parse_tiers(given.pop("tiers"))
    return LeanKVConfig(kernels=kernels, **given, **cache), None


def offload_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What of the configuration says where pages are kept beyond the device, as far as it was given.

    Raises:
        LeanKVError: one sentence naming the flag that is wrong.
    """
    found: dict[str, Any] = {}
    for name in ("host_memory", "store_size"):
        if (given := getattr(args, f"leankv_{name}")) is not None:
            found[name] = parse_bytes(given, flag := f"--leankv-{name.replace('_', '-')}")
            if found[name] < LEAST_PLACE:
                raise LeanKVError(f"{flag} is at least {say_bytes(LEAST_PLACE)}, not {given!r}; leave it out for none.")
    found |= {name: given for name in ("store", "load") if (given := getattr(args, f"leankv_{name}")) is not None}
    one_of("--leankv-load", found.get("load", LOADS[0]), LOADS)
    for name in ("store_size", "load"):
        if name in found and "store" not in found:
            raise LeanKVError(f"--leankv-{name.replace('_', '-')} is about the pages of --leankv-store; give that too.")
    return found


def drain_seconds(args: argparse.Namespace) -> float:
    """How long requests may go on once the server was told to end.

    Raises:
        LeanKVError: for what is no such time.
    """
    given: float | None = args.leankv_drain_seconds
    if given is None:
        return DEFAULT_DRAIN_SECONDS
    if not 0 <= given < math.inf:
        raise LeanKVError(f"--leankv-drain-seconds is a number of at least 0, not {given:g}.")
    return given


def split_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and the rest for SGLang."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    ours, rest = parser.parse_known_args(list(argv))
    if unknown := [a for a in rest if a.startswith("--leankv")]:
        raise LeanKVError(f"{unknown[0].split('=')[0]} is not a flag; --help lists the LeanKV flags.")
    return ours, rest


def merge_config_file(argv: Sequence[str]) -> list[str]:
    """The arguments with those of SGLang's ``--config FILE`` among them; imports sglang."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    add_flags(parser)
    return ConfigArgumentMerger(parser).merge_config_with_args(list(argv))


def print_help(ours_alone: bool) -> None:
    """Print our flags at once, then SGLang's unless ours alone were asked for; the latter imports sglang."""
    usage = "python -m leankv_sglang.launch_server"
    parser = argparse.ArgumentParser(prog=usage, usage=f"{usage} [LeanKV's flags] [SGLang's flags]", add_help=False)
    add_flags(parser)
    print(parser.format_help(), flush=True)
    if ours_alone:
        return
    from sglang.srt.server_args import ServerArgs

    theirs = argparse.ArgumentParser(prog=usage, usage=argparse.SUPPRESS, add_help=False)
    ServerArgs.add_cli_args(theirs.add_argument_group("SGLang", "Flags of SGLang's own server; all are taken here"))
    print(theirs.format_help())


def with_model_path(rest: Sequence[str]) -> tuple[list[str], str]:
    """SGLang's flags with the model replaced by a folder on disk, and that folder; without one, the default model's.

    A model of the catalog, or of a .gguf file, is served under its name, not under the path of what it became.

    Raises:
        ModelError: where the model is not to be had.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model-path", "--model")
    found, others = parser.parse_known_args(list(rest))
    given, folder = found.model_path or DEFAULT_MODEL, resolve_model_path(found.model_path)
    named = any(arg.split("=")[0] == "--served-model-name" for arg in others)
    name = [] if named or folder == given else ["--served-model-name", Path(given).name.removesuffix(".gguf")]
    return ["--model-path", folder, *name, *others], folder


def page_size_of(rest: Sequence[str]) -> int | None:
    """The page size among SGLang's flags; what is no number is left for SGLang to refuse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--page-size", nargs="?")
    found: str | None = parser.parse_known_args(list(rest))[0].page_size
    # More digits than any number of tokens has, Python refuses to read.
    return int(found) if found and found.isdecimal() and len(found) < 20 else None
