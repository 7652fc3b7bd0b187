"""The options of a run, read by the command and handed on to the process that does it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.gpu.server.pack import ROOT

PACK = ROOT / "out" / "leankv-server"
SECONDS = 470.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """To a parser."""
    out = os.environ.get("OUT") or str(ROOT / "out" / "gpu-server")
    parser.add_argument("--set-up", action="store_true", help="unpack, convert models, and stop")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, on a CPU (by itself where no GPU is)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default: {SECONDS:.0f})")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="in place of SmolLM2")
    parser.add_argument("--from", dest="source", type=Path, default=PACK, metavar="FOLDER", help="of the pack")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="FOLDER", help="default: $OUT or out/gpu-server")


def forward(args: argparse.Namespace) -> list[str]:
    """The same options, for another command line."""
    words = ["--seconds", str(args.seconds), "--from", str(args.source.absolute()), "--out", str(args.out.absolute())]
    words += ["--cpu"] * args.cpu + ["--set-up"] * args.set_up
    return words + (["--model", str(args.model.absolute())] if args.model else [])
