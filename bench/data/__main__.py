"""``python -m bench.data``: the texts that benches read, each held to its hash; what GitHub does not give is stood in
for by texts made from a package and from generators, which the folder's ``stand-ins.json`` names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common.data_folder import STAND_IN_NOTE, data_dir
from bench.common.table import print_table
from bench.data.make import NONE, make, rows
from bench.data.sources import BABILONG
from leankv_sglang.command import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 0, 2 after an error, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", metavar="FOLDER", type=Path, help=f"default: where benches read, {data_dir()}")
    parser.add_argument("--offline", action="store_true", help="make the stand-ins without trying GitHub")
    args = parser.parse_args(argv)
    folder = args.into.expanduser().absolute() if args.into else data_dir()

    def run() -> None:
        for why in make(folder, args.offline):
            print(why, file=sys.stderr)
        found = rows(folder)
        print_table(found, str(folder))
        if any(row["stand-in"] == "yes" for row in found):
            print(STAND_IN_NOTE)
        if absent := [row["file"] for row in found if row["source"] == NONE]:
            print(f"There is no stand-in for {', '.join(absent)}: the task that reads it needs GitHub.")
        print(BABILONG)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
