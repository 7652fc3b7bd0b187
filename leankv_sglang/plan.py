"""``python -m leankv_sglang.plan --model M --memory 2GiB``: what a token costs, and how many a pool holds.

Everything comes from the record layout and the model's shape; nothing is loaded or measured. Tokens held are those of a
long-running server, whose pages are trimmed down to their far part but for one boundary in sixteen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from leankv_kernels import RecordLayout, TierCounts
from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR
from leankv_sglang.byte_size import parse_bytes
from leankv_sglang.command import exit_code
from leankv_sglang.compression.build import layout_for
from leankv_sglang.compression.profile import shipped_profile
from leankv_sglang.compression.profile_file import load_profile, measured_ratios
from leankv_sglang.config import PAGE_SIZES, LeanKVConfig, parse_tiers
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.hybrid.sizes import END_EVERY, ENDS, SGLANG_RATIO, WindowNeed
from leankv_sglang.kvcache.lasting import calibrated_cost, lasting_cost
from leankv_sglang.kvcache.ledger import Ledger
from leankv_sglang.kvcache.sizing import open_page_bytes, page_bytes, tokens_for
from leankv_sglang.models.known_shapes import KNOWN_SHAPES, known_shape
from leankv_sglang.models.ranks import uneven
from leankv_sglang.models.shape import MOST, ModelShape, WindowShape, read_shapes, shape_of
from leankv_sglang.server.early_checks import check_served_anywhere
from leankv_sglang.table import print_table

CHUNK = 4096
"""Tokens of a prefill at most on a CPU, SGLang's default."""
SHAPE_FLAGS = ("--layers", "--query-heads", "--kv-heads", "--head-dim")
MOST_REQUESTS = 2**20
CONTEXTS = 4096, 32768, 131072
TYPICAL = "half of the tokens high"
LEGEND = """A: a threshold, a multiple of uniform attention; the shares it gives are the model's affair.
At the default, 1, they lie between half of the tokens high and all far tokens low;
python -m leankv_sglang.calibrate finds what may be pruned.
"""


class Form(NamedTuple):
    """A way to keep tokens: which share of them is high and which is pruned, the rest being low; and the flags that
    lead there, where A is a threshold that does so for the model's attention."""

    name: str
    tiers: str
    high: float
    pruned: float
    flags: str


FORMS = (
    Form("all high", "k8v4,k4v2", 1.0, 0.0, "--leankv-alpha-high 0"),
    Form("half of the tokens high", "k8v4,k4v2", 0.5, 0.0, "--leankv-alpha-high A"),
    Form("all far tokens low", "k8v4,k4v2", 0.0, 0.0, "--leankv-significance none"),
    Form("far tokens low, 30% pruned", "k8v4,k4v2", 0.0, 0.3, "--leankv-alpha-high inf --leankv-alpha-low A"),
    Form("all k8v4, near and far", "k8v4", 1.0, 0.0, "--leankv-tiers k8v4"),
    Form("all k4v2, near and far", "k4v2", 1.0, 0.0, "--leankv-tiers k4v2"),
)


def lasting_units(layout: RecordLayout, form: Form, near_pages: int, num_layers: int) -> float:
    """Units a token of a long-held page costs: trimmed, but for the boundaries that are kept."""
    ledger = Ledger(layout.page_size, layout.page_size, num_layers * layout.max_blocks)
    high = round(form.high * layout.page_size)
    low = layout.page_size - high - round(form.pruned * layout.page_size)
    counts = TierCounts(*(torch.full((1, layout.num_kv_heads), n) for n in (high, 0, low)))
    prices = []
    for level in (LEVEL_FAR, LEVEL_NEAR):
        length = int(layout.level_bytes(counts, torch.tensor([level])))
        blocks = torch.tensor([-(-length // layout.block_bytes) * num_layers])
        prices.append(float(ledger.units_of(blocks.numpy())[0]))
    return lasting_cost(prices[0], prices[1], near_pages) / layout.page_size


def plan_rows(shape: ModelShape, memory: int, page_size: int, requests: int, near_pages: int) -> list[dict[str, Any]]:
    """One row for each form, after one for 16 bits.

    Raises:
        LeanKVError: when the memory does not hold a page beside the open pages.
    """
    rows = []
    for form in FORMS:
        high, mid, low = parse_tiers(form.tiers)
        config = LeanKVConfig(high=high, mid=mid, low=low, near_pages=near_pages)
        layout = layout_for(config, page_size, shape)
        cost = lasting_units(layout, form, near_pages, shape.layers)
        rows.append(_row(form.name, form.flags, layout, cost, shape, memory, requests))
    raw = shape.token_bytes
    plain = {
        "form": "16 bits, stock SGLang",
        "flags": "",
        "B/token at commit": raw,
        "B/token held": raw,
        "--max-total-tokens": memory // raw,
        "tokens held": memory // raw,
        "x 16 bits": 1.0,
    }
    return [plain, *rows]


def profile_rows(profile: Path, shape: ModelShape, memory: int, page_size: int, requests: int) -> list[dict[str, Any]]:
    """One row for each point of a shipped profile, by what it took of contexts of 4,096 tokens when it was calibrated;
    none for pages of another size than it is for.

    Raises:
        LeanKVError: as :func:`plan_rows`.
    """
    loaded = load_profile(str(profile))
    if loaded.page_size != page_size:
        return []
    layout = layout_for(loaded.config, page_size, shape)
    rows = []
    for name, ratio in measured_ratios(profile).items():
        cost = calibrated_cost(ratio, layout, shape.layers, shape.query_heads, loaded.config.near_pages)
        rows.append(_row(f"profile, {name}", f"--leankv-profile {name}", layout, cost, shape, memory, requests))
    return rows


def window_rows(shape: ModelShape, windows: WindowShape, token_bytes: float) -> list[dict[str, Any]]:
    """What one request takes, by its length, where some layers have a sliding window: one row a length.

    Args:
        shape: of the layers without one.
        windows: of those with one, which stay in 16 bits.
        token_bytes: what a token takes in the former once it is held for long.
    """
    rows = []
    for tokens in CONTEXTS:
        full, kept = tokens * shape.token_bytes, min(tokens, windows.tokens) * windows.token_bytes(shape)
        rows.append(
            {
                "tokens": tokens,
                "windows, MiB": kept / 2**20,
                "full layers in 16 bits, MiB": full / 2**20,
                "their share, %": 100 * full / (full + kept),
                "held, MiB": tokens * token_bytes / 2**20,
                "x 16 bits, windows included": (full + kept) / (tokens * token_bytes + kept),
            }
        )
    return rows


def _window_tokens(shape: ModelShape, windows: WindowShape, memory: int, args: argparse.Namespace) -> int:
    layout = layout_for(LeanKVConfig(near_pages=args.near_pages), args.page_size, shape)
    requests = args.max_running_requests

    def units(rest: int) -> int:
        return tokens_for(rest, layout, shape.layers, shape.query_heads, requests)

    need = WindowNeed(windows.tokens, args.page_size, requests, CHUNK)
    return need.tokens_in(memory, windows.token_bytes(shape), units)


def window_line(tokens: int, nbytes: int, requests: int) -> str:
    """What a server on a CPU keeps for windows, unless it is told."""
    return (
        f"Without --swa-full-tokens-ratio a server on a CPU keeps {tokens:,} tokens of windows in this memory, "
        f"{nbytes / 2**20:,.0f} MiB: for {requests} running requests, {ENDS} cached ends for each and one at least "
        f"for {END_EVERY:,} units of the pool, and at most {SGLANG_RATIO} tokens a unit."
    )


def _row(
    form: str, flags: str, layout: RecordLayout, cost: float, shape: ModelShape, memory: int, requests: int
) -> dict[str, Any]:
    units = tokens_for(memory, layout, shape.layers, shape.query_heads, requests)
    if not units:
        needed = (requests + 1) * open_page_bytes(layout, shape.layers, shape.query_heads)
        raise LeanKVError(
            f"--memory {memory:,} does not hold a page beside the open pages of {requests} requests, which take "
            f"{needed:,} bytes; give more, or fewer --max-running-requests."
        )
    held, whole = int(units / cost), page_bytes(layout, shape.layers) / layout.page_size
    return {
        "form": form,
        "flags": flags,
        "B/token at commit": whole,
        "B/token held": cost * whole,
        "--max-total-tokens": units,
        "tokens held": held,
        "x 16 bits": held / (memory // shape.token_bytes),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m leankv_sglang.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument(
        "--model",
        help="a folder, a .gguf file, a name of the catalog, or one of "
        f"{', '.join(KNOWN_SHAPES)} (default: the default model)",
    )
    shape = out.add_argument_group("another model's shape, instead of --model")
    for name in SHAPE_FLAGS:
        shape.add_argument(name, type=int, metavar="N")
    out.add_argument("--memory", default="2GiB", help="bytes for the KV cache of a rank in all (default: 2GiB)")
    out.add_argument(
        "--tp-size", type=int, default=1, help="ranks that share the heads; figures are of one (default: 1)"
    )
    out.add_argument("--page-size", type=int, default=128, choices=PAGE_SIZES)
    out.add_argument("--max-running-requests", type=int, default=32, help="each has a raw open page (default: 32)")
    out.add_argument("--near-pages", "--window", type=int, default=1, help="--leankv-near-pages (default: 1)")
    return out


def stated_shape(args: argparse.Namespace) -> ModelShape | None:
    """The shape that the flags give, if they do.

    Raises:
        LeanKVError: where they give a part of one, one that no model has, or ``--model`` beside it.
    """
    numbers = (args.layers, args.query_heads, args.kv_heads, args.head_dim)
    if numbers == (None,) * 4:
        return None
    if None in numbers or args.model:
        raise LeanKVError(f"Give --model, or all of {', '.join(SHAPE_FLAGS)}.")
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    try:
        return shape_of(dict(zip(names, numbers, strict=True)))
    except ValueError as error:
        raise LeanKVError(f"{', '.join(SHAPE_FLAGS)} give no shape of a model: {error}.") from None


def run(args: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        LeanKVError: one sentence saying which argument is wrong.
    """
    from leankv_sglang.models import resolve_model_path

    memory, requests = parse_bytes(args.memory), args.max_running_requests
    if not 1 <= requests <= MOST_REQUESTS:
        raise LeanKVError(f"--max-running-requests is a number from 1 to {MOST_REQUESTS:,}, not {requests}.")
    LeanKVConfig(near_pages=args.near_pages)
    if not 1 <= args.tp_size <= MOST:
        raise LeanKVError(f"--tp-size is a number from 1 to {MOST:,}, not {args.tp_size}.")
    folder = windows = None
    shape = stated_shape(args) or (known_shape(args.model) if args.model else None)
    if shape is None:
        folder = resolve_model_path(args.model)
        if args.model and not Path(folder).is_dir():
            raise LeanKVError(
                f"--model {args.model} is neither a folder nor a known name ({', '.join(KNOWN_SHAPES)}); "
                f"give {', '.join(SHAPE_FLAGS)} instead."
            )
        check_served_anywhere(folder)
        shape, windows = read_shapes(folder)
    why = uneven(shape.query_heads, shape.kv_heads, args.tp_size)
    shape, windows = shape.on_rank(args.tp_size), windows and windows.on_rank(args.tp_size)
    tokens = _window_tokens(shape, windows, memory, args) if windows else 0
    kept = tokens * windows.token_bytes(shape) if windows else 0
    beside = f", {kept:,} of them for windows" if windows else ""
    whole, memory = memory, memory - kept
    rows = plan_rows(shape, memory, args.page_size, requests, args.near_pages)
    if folder and (shipped := shipped_profile(folder)):
        rows[1:1] = profile_rows(shipped, shape, memory, args.page_size, requests)
    ranks = f" on each of {args.tp_size} ranks" if args.tp_size > 1 else ""
    title = f"{shape.describe()}{ranks}; {whole:,} bytes in all{beside}"
    print_table([{name: _say(name, value) for name, value in row.items()} for row in rows], title)
    print(LEGEND)
    if why is not None:
        print(f"{why}: SGLang refuses that on GPUs, and fills up with heads of zeros on a CPU.\n")
    if windows is not None:
        cost = next(row for row in rows if row["form"] == TYPICAL)["B/token held"]
        title = f"One request: {windows.layers} layers more have a window of {windows.tokens:,} tokens; {TYPICAL}"
        print_table([{k: _say(k, v) for k, v in row.items()} for row in window_rows(shape, windows, cost)], title)
        print(window_line(tokens, kept, requests))


def _say(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if name.startswith("x") or "MiB" in name else f"{value:,.0f}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
