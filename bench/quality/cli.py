"""Quality of a compressed KV cache next to its physical bytes: text, retrieval, arithmetic, code and chat.

Every task runs over the exact 16-bit cache and over each system, in one program with one set of prompts; questions
about a context are asked after it was compressed. Finished items are kept, so a run that was stopped goes on where it
was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from bench.common.command import Parser
from bench.common.plot import save_plot
from bench.common.table import write_json
from bench.quality.harness import CONTEXT, SERVED_DTYPE, Bench, Limits, Row
from bench.quality.items import ItemStore
from bench.quality.plot import METRICS, plot
from bench.quality.report import print_rows, read_rows
from bench.quality.systems import ALL_FORMS, systems
from bench.quality.tasks import TASKS, task
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import resolve_model_path
from leankv_sglang.offline.device import add_device_flag, pick_device
from leankv_sglang.offline.packed import PackedModel

ITEMS = Path(__file__).resolve().parents[2] / "build" / "quality"
QUICK = {
    "limit": 3,
    "windows": 1,
    "lengths": (2048,),
    "max_new": 96,
    "systems": ["all k8v4", "balanced", "small"],
    "tasks": ["text", "needle", "chat"],
}
NONE = "none"


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "quality",
        __doc__,
        quick="text, needle and chat: one window, 3 items of 2,048 tokens, up to 96 new ones; a minute and a half",
        sizes=QUICK,
        plot=True,
    )
    parser.add_argument("--model", help="catalog name or folder (default: SmolLM2)")
    parser.add_argument(
        "--systems",
        nargs="+",
        metavar="NAME",
        default=[ALL_FORMS],
        help="names, profile files (.json), SGLang's fp8_e4m3 and fp8_e5m2, or forms for all forms (the default)",
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="FILE", help="one more system, a profile file"
    )
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "all", NONE], default=["text"], help="default: text")
    parser.add_argument("--limit", type=int, metavar="N", help="items per task")
    parser.add_argument("--length", type=int, default=CONTEXT, help="tokens of a window of text")
    parser.add_argument("--windows", type=int, help="windows of text (default 4)")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="N", help="context lengths of retrieval tasks")
    parser.add_argument("--max-new", type=int, metavar="N", help="cap on the tokens of an answer")
    parser.add_argument("--batch", type=int, default=Limits.batch, help="answers decoded together")
    parser.add_argument("--tokens", type=int, default=Limits.tokens, help="tokens held while answers are decoded")
    parser.add_argument("--samples", type=int, default=0, help="humaneval: answers drawn per problem, not one greedy")
    parser.add_argument("--temperature", type=float, default=Limits.temperature, help="of answers that are drawn")
    parser.add_argument("--page-size", type=int, default=128, choices=(64, 128, 256))
    parser.add_argument("--near-pages", "--window", type=int, help="pages of near view, instead of each system's own")
    parser.add_argument(
        "--dtype",
        default=SERVED_DTYPE,
        choices=(SERVED_DTYPE, "float32"),
        help="what the model computes in; bfloat16, as served, makes noise of its own",
    )
    add_device_flag(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="seeds of tasks that are drawn at random")
    parser.add_argument("--text", metavar="FILE", help="instead of the held-out half of WikiText-2")
    parser.add_argument("--resume", default=str(ITEMS), metavar="DIR", help="where finished items are kept")
    parser.add_argument("--rival-json", nargs="+", default=[], metavar="FILE", help="rows of other systems to merge")
    parser.add_argument(
        "--plot-metric", choices=list(METRICS), help="of text (default: kl, or kl_tail where a rival has no other)"
    )
    return parser


def _limits(args: argparse.Namespace) -> Limits:
    given = {"items": args.limit, "windows": args.windows, "max_new": args.max_new}
    given |= {"lengths": tuple(args.lengths) if args.lengths else None}
    asked = {name: value for name, value in given.items() if value is not None}
    asked |= {name: getattr(args, name) for name in ("length", "batch", "tokens", "repeats", "samples", "temperature")}
    return replace(Limits(), **asked)


def evaluate(args: argparse.Namespace, names: list[str]) -> list[Row]:
    """Run the tasks of parsed arguments; rows."""
    model, tokenizer = PackedModel.load(args.model, getattr(torch, args.dtype), pick_device(args.device))
    chosen = systems([*args.systems, *args.profile], model.shape.cache, args.near_pages, resolve_model_path(args.model))
    text = Path(args.text).read_text() if args.text else None
    bench = Bench(model, tokenizer, chosen, ItemStore(Path(args.resume)), args.page_size, text)
    rows: list[Row] = []
    for name in names:
        rows += task(name).run(bench, _limits(args), args.seed)
        print_rows([row for row in rows if row["task"].split(" ")[0] == name])
        write_json(args.json, rows)
    return rows


def main() -> None:
    """Command line."""
    parser = command_line()
    args = parser.parse_args()
    names = [name for name in (TASKS if "all" in args.tasks else args.tasks) if name != NONE]
    try:
        rivals = read_rows(args.rival_json)
        rows = evaluate(args, names) if names else []
    except (LeanKVError, OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    if rivals:
        rows += rivals
        print_rows(rows)
    write_json(args.json, rows)
    save_plot(lambda file: plot(rows, file, args.plot_metric), args.plot)
