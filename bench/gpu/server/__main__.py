"""``bench/gpu/server.sh``: does the server work on this GPU, and how fast beside stock SGLang, in 8 minutes?

1. set-up from what is installed or packed, models converted, LeanKV's server and stock SGLang (Triton attention) begun
side by side; 2. answers, and hits against misses, also with ``--enable-deterministic-inference``; 3. decode step time
and prefill, with graphs and without; 4. gaps between kernels in a decode step; 5. chat that shares prompts, at equal
bytes; 6. speed and chat of Llama-3-8B's shape without weights. Every step has a time limit, and the run goes on behind
what fails. Everything is in ``server.json``, as far as it came; servers' logs are in ``logs.tar.gz``.

``--pack [FOLDER]`` makes what a GPU machine without packages lacks, on a machine with a package index, as ``part-00``,
``part-01`` and so on of at most 60 MiB, and ``pack.json``. With ``part-00`` alone everything runs but what needs
weights; ``--set-up`` unpacks what is there, where parts have to come one by one. ``--cpu`` tries the same at a tiny
size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.server.options import PACK, add_options, forward
from bench.gpu.server.pack import PYTHON, ROOT, pack
from bench.gpu.server.setup import SetupError, environment, set_up
from leankv_sglang.models.catalog import CATALOG, DEFAULT_MODEL

SITE = ROOT / "out" / "leankv-site"
"""What is not installed, for ``PYTHONPATH``."""


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    begin = time.time()
    parser = argparse.ArgumentParser(
        prog="bench/gpu/server.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, nargs="?", const=PACK, metavar="FOLDER", help="make the pack, and stop")
    parser.add_argument("--models", nargs="+", choices=list(CATALOG), default=[DEFAULT_MODEL], help="to pack")
    parser.add_argument("--python", default=PYTHON, help=f"of the GPU machine, to pack for (default: {PYTHON})")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.pack:
        return _pack(args)
    out: Path = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    try:
        done = set_up(args.source.absolute(), SITE)
    except (SetupError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    done["seconds"] = round(time.time() - begin, 1)
    print(f"[{done['seconds']:5.0f} s] set-up: {done}", flush=True)
    (out / "server.json").write_text(json.dumps({"set_up": done}) + "\n")
    command = [sys.executable, "-m", "bench.gpu.server.check", "--begin", str(begin), *forward(args)]
    return subprocess.run(command, env={**os.environ, **environment(SITE)}, cwd=ROOT, check=False).returncode


def _pack(args: argparse.Namespace) -> int:
    parts = pack(args.pack.absolute(), args.models, args.python)
    for part in parts:
        print(f"{part.stat().st_size / (1 << 20):6.1f} MiB {part}")
    print(
        f"carry these and {args.pack / 'pack.json'} to the folder of the same name in a checkout, then "
        "bench/gpu/server.sh there"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
