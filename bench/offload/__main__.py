"""Pages beyond the device: what a hit from there costs, what is moved how fast, and what host memory is good for.

``first``: milliseconds to the first token of prefixes that are recomputed, on the device, in host memory, on disk or
in a Mooncake Store, and bytes a token. ``moves``: pages and megabytes a second of every step, without a server.
``set``: a real trace whose working set is three times what the device holds, with and without host memory. ``router``:
chats on two servers behind SGLang's router, with and without one store for both. ``restart``: servers are killed and
started again on their folder, every answer compared. Mooncake and the router are measured
where their packages are installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.common.command import Parser, run
from bench.common.plot import save_plot
from bench.common.table import print_table, write_json
from bench.offload.first_token import all_places, first_tokens
from bench.offload.master import has_mooncake
from bench.offload.moves import SHAPES, move_rows
from bench.offload.restart import restart_rows
from bench.offload.router import has_router, router_rows
from bench.offload.working_set import working_set_rows

PARTS = ("first", "moves", "set", "router", "restart")


def plot_first(rows: Sequence[dict[str, Any]], file: str) -> bool:
    """Time to first token against the prefix's length, a line a place. False without rows."""
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        points = [
            (int(key.split()[0].replace(",", "")), value) for key, value in row.items() if key.endswith(" tokens")
        ]
        panel.plot(*zip(*points, strict=True), marker="o", label=row["from"])
    panel.set(xlabel="tokens of the prefix", ylabel="ms to the first token", yscale="log")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.suptitle("SmolLM2-135M on two CPU cores: where a prefix comes from", fontsize=10)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "offload",
        __doc__,
        quick="one round of prefixes of 1,024 and 2,048 tokens from disk, and moves; two minutes",
        sizes={
            "rounds": 1,
            "lengths": [1024, 2048],
            "places": ["recomputed", "device", "disk"],
            "parts": ["first", "moves"],
            "pages": 64,
        },
        plot=True,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 6144], help="whole pages of 128")
    parser.add_argument("--places", nargs="+", choices=all_places(), default=all_places())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=256, help="that are moved at once")
    parser.add_argument("--chats", type=int, default=8, help="behind the router")
    parser.add_argument("--prompts", type=int, default=20, help="of the restart")
    parser.add_argument("--requests", type=int, default=60, help="of the trace")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    if "first" in args.parts:
        first = first_tokens(args.lengths, args.rounds, args.places)
        print_table(first, "Milliseconds to the first token, medians; SmolLM2, two CPU cores")
        rows += first
        write_json(args.json, rows)
    if "moves" in args.parts:
        moves = [row for model in SHAPES for row in move_rows(model, args.pages, 5)]
        print_table(moves, f"{args.pages} pages at a time at their far size, one with its near part")
        rows += moves
        write_json(args.json, rows)
    if "set" in args.parts:
        kept = working_set_rows(args.requests, args.rounds)
        print_table(kept, "A working set three times what the device holds")
        rows += kept
        write_json(args.json, rows)
    if "router" in args.parts and has_router() and has_mooncake():
        routed = router_rows(args.chats, 5)
        print_table(routed, f"{args.chats} chats of 5 turns on two servers behind SGLang's router")
        rows += routed
        write_json(args.json, rows)
    if "restart" in args.parts:
        outlived = restart_rows(args.prompts, 300, 3000)
        print_table(outlived, "Killed and started again on the same folder; prompts of 300 to 3,000 tokens")
        rows += outlived
        write_json(args.json, rows)
    save_plot(lambda file: plot_first(first, file), args.plot)


if __name__ == "__main__":
    run(main)
