"""``python -m leankv_sglang.calibrate``: thresholds per layer and KV head for one model, written as a profile.

Without a target it finds ``lossless``, ``balanced`` and ``small``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leankv_sglang.config import DEFAULT_PAGE_SIZE, PAGE_SIZES, LeanKVConfig, parse_tiers
from leankv_sglang.errors import LeanKVError
from leankv_sglang.fingerprint import fingerprint
from leankv_sglang.profile import VERSION, pack_predictor

DEFAULT_TIERS = "k8v4,k4v4,k4v2"
# Below the bars that the profiles are named for: another text may cost a little more.
TARGETS = {"lossless": {"kl": 0.0045}, "balanced": {"kl": 0.0145}, "small": {"kl": 0.032}}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="python -m leankv_sglang.calibrate", description=__doc__)
    out.add_argument("--model", metavar="NAME|DIR", help="catalog name or folder (default: the default model)")
    out.add_argument("--out", metavar="FILE", default="profile.json", help="the profile (default: profile.json)")
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
    out.add_argument("--window", type=int, default=1, help="pages of near view (default: 1)")
    out.add_argument("--page-size", type=int, default=DEFAULT_PAGE_SIZE, choices=PAGE_SIZES)
    out.add_argument("--seed", type=int, default=0)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except LeanKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> None:
    """Calibrate and write the profile."""
    import torch
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from leankv_sglang.calibrate.run import Setting, Target, calibrate
    from leankv_sglang.calibrate.search import Found
    from leankv_sglang.calibrate.windows import calibration_windows, default_text
    from leankv_sglang.models import resolve_model_path

    start = time.monotonic()
    high, mid, low = parse_tiers(args.tiers)
    # Where a predictor's weights will lie is only known later; until then any name does.
    config = LeanKVConfig(
        high=high, mid=mid, low=low, significance=args.significance, window=args.window, predictor=args.out
    )
    if args.target_kl is None and args.target_ratio is None:
        targets = [Target(name, **wanted) for name, wanted in TARGETS.items()]
    else:
        targets = [Target(args.name, args.target_kl, args.target_ratio)]
    if any(not target.name.isidentifier() for target in targets):
        raise LeanKVError(f"--name must be a plain word, not {args.name!r}.")
    folder = resolve_model_path(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [_read(path) for path in args.text or []] or [default_text()]
    windows = calibration_windows(tokenizer, texts, args.windows, 2048, args.seed)
    measured_on = calibration_windows(tokenizer, texts, args.measured, 4096, args.seed + 1)
    model = json.loads((Path(folder) / "config.json").read_text())
    heads = model["num_attention_heads"]
    profile: dict[str, Any] = {
        "leankv_profile": VERSION,
        "model": {
            "name": Path(folder).name,
            "num_layers": model["num_hidden_layers"],
            "num_kv_heads": model.get("num_key_value_heads") or heads,
            "head_dim": model.get("head_dim") or model["hidden_size"] // heads,
            "fingerprint": fingerprint(folder),
        },
        "page_size": args.page_size,
        "tiers": config.tiers,
        "rotation": config.rotation,
        "significance": config.significance,
        "window": config.window,
        "points": {},
        "calibration": {
            "texts": [Path(path).name for path in args.text or []] or ["pydoc topics"],
            "windows": [args.windows, args.measured],
            "seed": args.seed,
        },
    }

    def save(weights: torch.Tensor | None) -> str | None:
        if weights is None:
            return None
        profile["predictor"] = pack_predictor(weights)
        _write(args.out, profile)
        return str(args.out)

    def report(target: Target, found: Found) -> None:
        seen = found.measured
        tqdm.write(f"  {target.name:10} KL {seen.kl:.4f}  perplexity {seen.ppl_rel:+.2%}  {seen.ratio:.2f}x")

    done = calibrate(folder, windows, measured_on, Setting(config, args.page_size, args.seed), targets, report, save)
    for name, found in done.points.items():
        tables = zip(("alpha_high", "alpha_mid", "alpha_low"), found.alphas, strict=True)
        figures = {what: float(f"{value:.4g}") for what, value in found.measured._asdict().items()}
        profile["points"][name] = {**dict(tables), "measured": figures}
    _write(args.out, profile)
    print(f"{args.out}: {', '.join(done.points)}; {(time.monotonic() - start) / 60:.0f} minutes")
    for name, found in done.points.items():
        seen = found.measured
        print(f"  {name:10} KL {seen.kl:.4f}  perplexity {seen.ppl_rel:+.2%}  {seen.ratio:.2f}x at 4,096 tokens")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LeanKVError(f"--text {path} cannot be read: {error}.") from error


def _write(path: str, profile: dict[str, Any]) -> None:
    # The numbers of a layer on one line: readable, and small in a diff.
    text = re.sub(r"\[[^\[\]]*\]", lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(profile, indent=1))
    Path(path).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
