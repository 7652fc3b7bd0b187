"""Command line of the model store: `python -m leankv_sglang.models [fetch|convert|path] ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leankv_sglang.command import exit_code

from .cache import model_folder
from .catalog import CATALOG, DEFAULT_MODEL, lookup
from .errors import ModelError
from .store import convert_gguf, ensure_model, is_fetched


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = _parser().parse_args(argv)

    def run() -> None:
        for line in _run(args):
            print(line)

    return exit_code(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leankv_sglang.models",
        description="Lists the known models when given no command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="list the known models and whether they are fetched (the default)")
    fetch = commands.add_parser("fetch", help="fetch and convert known models")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="a name from the list")
    convert = commands.add_parser("convert", help="convert a GGUF file of your own")
    convert.add_argument("file", metavar="FILE.gguf", help="a file of Llama or Qwen2 architecture")
    convert.add_argument("--out", metavar="DIR", help="folder to write (default: one in the cache)")
    path = commands.add_parser("path", help="print the folder of a fetched model")
    path.add_argument("name", nargs="?", default=DEFAULT_MODEL, metavar="NAME", help=f"default: {DEFAULT_MODEL}")
    return parser


def _run(args: argparse.Namespace) -> list[str]:
    if args.command == "fetch":
        models = [lookup(name) for name in args.names]  # an unknown name stops before any download
        return [str(ensure_model(model.name)) for model in models]
    if args.command == "convert":
        return [str(convert_gguf(args.file, args.out))]
    if args.command == "path":
        if not is_fetched(args.name):
            raise ModelError(f"{args.name} is not fetched: run `python -m leankv_sglang.models fetch {args.name}`.")
        return [str(model_folder(args.name))]
    return _listing()


def _listing() -> list[str]:
    rows = [("NAME", "DOWNLOAD", "LICENCE", "FETCHED", "PATH", "NOTE")]
    for model in CATALOG.values():
        fetched = is_fetched(model.name)
        size = f"{model.download_bytes / 1e6:,.0f} MB"
        path = _short(model_folder(model.name)) if fetched else "-"
        rows.append((model.name, size, model.licence, "yes" if fetched else "no", path, model.note))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
