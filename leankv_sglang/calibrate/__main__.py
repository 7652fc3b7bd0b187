"""``python -m leankv_sglang.calibrate``: thresholds per layer and KV head for one model, written as a profile.

Without a target it finds ``near-lossless``, ``balanced`` and ``small``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leankv_sglang.command import exit_code
from leankv_sglang.compression.build import layout_for
from leankv_sglang.compression.profile_file import CALIBRATED_TOKENS
from leankv_sglang.config import DEFAULT_PAGE_SIZE, PAGE_SIZES, LeanKVConfig, parse_tiers
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import home, resolve_model_path
from leankv_sglang.models.check import check_model_folder
from leankv_sglang.models.shape import read_shape
from leankv_sglang.offline.device import add_device_flag, pick_device

if TYPE_CHECKING:
    from leankv_sglang.calibrate.measure import Measured

DEFAULT_TIERS = "k8v4,k4v4,k4v2"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m leankv_sglang.calibrate", description=__doc__)
    out.add_argument("--model", metavar="NAME|DIR", help="catalog name or folder (default: the default model)")
    out.add_argument("--out", metavar="FILE", default="profile.json", help="the profile (default: profile.json)")
    out.add_argument("--add", action="store_true", help="add to the points of the profile that is there")
    out.add_argument("--name", default="custom", help="name of the point, with a target (default: custom)")
    target = out.add_mutually_exclusive_group()
    target.add_argument("--target-kl", type=float, metavar="NATS", help="most KL per token, at the most bytes saved")
    target.add_argument("--target-ratio", type=float, metavar="X", help="least ratio of bytes, at the least KL")
    out.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="text to calibrate on, several take turns (default: Python's own documentation)",
    )
    out.add_argument("--windows", type=int, default=4, help="windows of 2,048 tokens for gradients (default: 4)")
    out.add_argument("--measured", type=int, default=2, help="windows of 4,096 tokens to search on (default: 2)")
    out.add_argument("--tiers", default=DEFAULT_TIERS, help=f"as --leankv-tiers (default: {DEFAULT_TIERS})")
    out.add_argument("--significance", default="predictor", choices=("predictor", "attention"))
    out.add_argument("--keep-all", action="store_true", help="prune nothing")
    out.add_argument("--near-pages", "--window", type=int, default=1, help="pages of near view (default: 1)")
    out.add_argument("--keep-first", type=int, default=1, help="as --leankv-keep-first, pages (default: 1)")
    out.add_argument("--page-size", type=int, default=DEFAULT_PAGE_SIZE, choices=PAGE_SIZES)
    out.add_argument("--seed", type=int, default=0)
    add_device_flag(out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Calibrate and write the profile."""
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from leankv_sglang.calibrate.check import (
        check_folder,
        check_kind,
        check_numbers,
        check_writable,
        read_text,
        targets_of,
    )
    from leankv_sglang.calibrate.document import add, begin, go_on, write
    from leankv_sglang.calibrate.explore import Setting
    from leankv_sglang.calibrate.run import calibrate
    from leankv_sglang.calibrate.search import Found, Target
    from leankv_sglang.calibrate.windows import calibration_windows, default_text

    start, device = time.monotonic(), pick_device(args.device)
    check_numbers(args)
    targets, kept = targets_of(args), home() / "calibration"
    check_writable(args.out)
    check_folder(kept)
    texts = [read_text(path) for path in args.text or []]
    high, mid, low = parse_tiers(args.tiers)
    # A predictor comes from the calibration itself; until it is written any file's name does.
    pages = {"near_pages": args.near_pages, "keep_first": args.keep_first}
    config = LeanKVConfig(high=high, mid=mid, low=low, significance=args.significance, predictor=args.out, **pages)
    folder = resolve_model_path(args.model)
    check_model_folder(folder, "--model")
    check_kind(folder)
    shape = read_shape(folder)
    layout_for(config, args.page_size, shape)
    setting = Setting(config, args.page_size, not args.keep_all, args.seed)
    profile = begin(folder, shape, setting)
    if args.add:
        profile = go_on(args.out, profile)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever its parser met first
        raise LeanKVError(
            f"--model {folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())})."
        ) from error
    texts = texts or [default_text()]
    windows = calibration_windows(tokenizer, texts, args.windows, 2048, args.seed)
    measured_on = calibration_windows(tokenizer, texts, args.measured, CALIBRATED_TOKENS, args.seed + 1)

    def report(target: Target, found: Found) -> None:
        tqdm.write(f"  {target.name:10} {_say(found.measured)}")

    done = calibrate(folder, windows, measured_on, setting, targets, report, kept, device)
    names = [Path(path).name for path in args.text or []] or ["pydoc topics"]
    add(profile, done, {"texts": names, "windows": [args.windows, args.measured], "seed": args.seed})
    write(profile, args.out)
    print(f"{args.out}: {', '.join(done.points)}; {(time.monotonic() - start) / 60:.0f} minutes")
    for target in targets:
        found = done.points[target.name]
        print(f"  {target.name:10} {_say(found.measured)} at 4,096 tokens")
        if not target.met(found.measured):
            wanted = f"KL {target.kl}" if target.kl is not None else f"{target.ratio}x"
            print(f"  {target.name:10} does not reach {wanted}: it is the nearest that was found")


def _say(seen: Measured) -> str:
    return f"KL {seen.kl:.4f}  perplexity {seen.ppl_rel:+.2%}  {seen.ratio:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
