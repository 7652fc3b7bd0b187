"""Bytes of every layer and KV head in a running server: heads keep what they need, and others have the room.

``python -m bench.heads`` starts the real server for each profile, fills a small pool with long passages of WikiText, so
that near parts are trimmed as they are under load, and reads ``bytes_by_head``. Flags it does not know are the server's
(``--leankv-alpha-low 0.5``, ``--page-size 64``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import wikitext
from bench.common.plot import heatmaps, save_plot
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json
from bench.serving.__main__ import PRUNED_PROFILE, write_pruned_profile
from leankv_sglang.compression.profile import shipped_profile
from leankv_sglang.models import resolve_model_path
from leankv_sglang.models.shape import read_shape

PRUNED = "pruned"
FLAGS = "by flags"
SHIPPED = ("near-lossless", "balanced", "small")
TIERS = ("high", "mid", "low", "pruned")
CHARACTERS = 4.3
"""Of WikiText a token, about."""


class Reading(NamedTuple):
    """What a filled server says."""

    heads: list[list[float]]
    """Bytes per token held, by layer and KV head."""
    tokens: int
    near: float
    """Share of near parts in all bytes: what pressure has not trimmed."""
    ratio: float
    tiers: dict[str, float]
    """Shares of the tokens of all heads, by tier."""


def passages(count: int, tokens: int) -> list[str]:
    """Passages of WikiText of about so many tokens, one behind the other and again from the start."""
    text, size = wikitext("heldout"), round(tokens * CHARACTERS)
    starts = [i * size % max(len(text) - size, 1) for i in range(count)]
    return [text[start : start + size] for start in starts]


def fill(server: Server, count: int, tokens: int, name: str) -> Reading:
    """Ask for passages one after the other, then read the figures."""
    for passage in tqdm(passages(count, tokens), desc=name, unit="prompt"):
        server.generate(passage, 1)
    figures = server.info()["leankv"]
    held = figures["tokens_held"]
    heads = [[size / held for size in layer] for layer in figures["bytes_by_head"]]
    tiers = {tier: figures[f"share_{tier}"] for tier in TIERS}
    return Reading(heads, held, figures["bytes"]["near"] / figures["bytes_total"], figures["ratio"], tiers)


def summary(name: str, reading: Reading, raw: int) -> dict[str, Any]:
    """A row: how far apart heads are, beside the bytes that each takes in 16 bits."""
    sizes = [size for layer in reading.heads for size in layer]
    mean = statistics.fmean(sizes)
    row: dict[str, Any] = {"profile": name, "tokens held": reading.tokens, "ratio": reading.ratio}
    row |= {"16 bits": raw, "mean": mean, "min": min(sizes), "median": statistics.median(sizes), "max": max(sizes)}
    return row | {
        "below half of the mean": sum(size < mean / 2 for size in sizes) / len(sizes),
        "near share": reading.near,
        **reading.tiers,
    }


def ends(reading: Reading, raw: int, count: int = 4) -> list[dict[str, Any]]:
    """Rows of the heads with the fewest and the most bytes, ``count`` of each, or all where they are fewer.

    Args:
        reading: what a filled server says.
        raw: bytes of a token in one KV head in 16 bits.
        count: of heads at either end.
    """
    heads = sorted((size, layer, head) for layer, sizes in enumerate(reading.heads) for head, size in enumerate(sizes))
    total = sum(size for size, _, _ in heads)
    ranked = list(enumerate(heads, 1))
    return [
        {
            "rank": f"{rank} of {len(heads)}",
            "layer": layer,
            "KV head": head,
            "bytes per token": size,
            "x 16 bits": raw / size if size else float("inf"),
            "share of all bytes": f"{size / total if total else 0.0:.2%}",
        }
        for rank, (size, layer, head) in [*ranked[:count], *ranked[max(count, len(heads) - count) :]]
    ]


def profiles(asked: Sequence[str], rest: Sequence[str], model: str) -> dict[str, tuple[str, ...]]:
    """Flags by name: what was asked for, else what the flags say, what is shipped for the model, or ``pruned``."""
    if not asked and any(flag.startswith("--leankv-") for flag in rest):
        return {FLAGS: ()}
    found: dict[str, tuple[str, ...]] = {}
    for name in asked or (SHIPPED if shipped_profile(model) else (PRUNED,)):
        if name == PRUNED:
            write_pruned_profile()
        found[name] = ("--leankv-profile", PRUNED_PROFILE if name == PRUNED else name)
    return found


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "heads",
        __doc__,
        quick="a pool of 4,096 tokens, prompts of 1,000; two minutes",
        sizes={"units": 4096, "tokens": 1000},
        plot=True,
    )
    parser.add_argument("--model", help="catalog name or folder (default: SmolLM2)")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME|FILE[:NAME]",
        help="as --leankv-profile takes it; pruned prunes three heads of ten of SmolLM2, whatever it costs; "
        "may be repeated (default: what is shipped for the model, else pruned)",
    )
    parser.add_argument("--units", type=int, default=16384, help="the pool's --max-total-tokens")
    parser.add_argument("--tokens", type=int, default=2000, help="of a prompt, about")
    parser.add_argument("--prompts", type=int, help="(default: three times the units)")
    return parser


def main() -> None:
    """Command line."""
    args, rest = command_line().parse_known_args()
    model = resolve_model_path(args.model)
    count = args.prompts or max(3 * args.units // args.tokens, 1)
    readings: dict[str, Reading] = {}
    for name, flags in profiles(args.profile, rest, model).items():
        pool = ("--max-total-tokens", str(args.units), "--max-running-requests", "2")
        with serve("--model-path", model, *pool, *flags, *rest) as server:
            readings[name] = fill(server, count, args.tokens, name)
    shape = read_shape(model)
    raw = 2 * (shape.head_dim + shape.v_head_dim)
    rows = [summary(name, reading, raw) for name, reading in readings.items()]
    print_table(rows, f"{args.model or 'SmolLM2'}: bytes per token and KV head")
    for name, reading in readings.items():
        print_table(ends(reading, raw), f"{name}: the heads with the fewest and the most bytes per token")
    write_json(args.json, [{**row, "heads": readings[row["profile"]].heads} for row in rows])
    save_plot(
        lambda file: heatmaps(
            {name: reading.heads for name, reading in readings.items()},
            file,
            x_text="KV head",
            y_text="layer",
            value_text="bytes per token",
            title=f"{args.model or 'SmolLM2'}: physical bytes of each KV head ({raw} in 16 bits)",
        ),
        args.plot,
    )


if __name__ == "__main__":
    run(main)
