"""Measures rivals' compressed KV caches on WikiText-2, beside the bytes that they really hold.

``make bench-rivals ARGS="--engine transformers --profile quanto"``. Windows of 4,096 tokens of the text's second half:
3,584 are read and compressed, the last 512 are scored against the same engine's 16-bit cache. What was measured before
is kept in ``--store`` and not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.table import print_table, write_json
from leankv_sglang.models import DEFAULT_MODEL, ensure_model
from leankv_sglang.models.catalog import lookup

from .common import CONTEXT, TAIL, Engine, Profile, Sample, Store, loss, to_rows, windows


def _transformers(path: Path, _threads: int | None) -> Engine:
    from .hf import TransformersEngine

    return TransformersEngine(str(path))


def _llamacpp(path: Path, threads: int | None) -> Engine:
    from transformers import AutoConfig

    from .gguf_model import plain_gguf
    from .llamacpp import LlamaCppEngine

    return LlamaCppEngine(plain_gguf(), AutoConfig.from_pretrained(path).vocab_size, threads)


def _openvino(_path: Path, threads: int | None) -> Engine:
    from .gguf_model import plain_gguf
    from .openvino_pages import OpenVinoEngine, saved_model

    return OpenVinoEngine(saved_model(plain_gguf()), threads)


ENGINES: dict[str, Callable[[Path, int | None], Engine]] = {
    "transformers": _transformers,
    "llama.cpp": _llamacpp,
    "OpenVINO": _openvino,
}


def measure(engine: Engine, texts: list[Tensor], chosen: list[Profile], store: Store, raw_bytes: int) -> None:
    """Measures what the store lacks; a profile that fails leaves its reason there and is not tried again."""
    model = DEFAULT_MODEL
    todo = [(w, p) for w in range(len(texts)) for p in chosen if not store.has(p, w, model)]
    failed: set[str] = set()
    own: tuple[int, Tensor] | None = None
    for window, profile in (bar := tqdm(todo, desc=engine.name, unit="window")):
        bar.set_postfix_str(f"{profile.name}, window {window}")
        if profile.name in failed:
            continue
        ids = texts[window]
        if own is None or own[0] != window:
            own = window, engine.trace(ids, None).logits
        sample = Sample(profile.system, profile.name, window, model, raw_bytes * len(ids), raw_bytes * CONTEXT)
        try:
            trace = engine.trace(ids, profile)
        except Exception as error:  # a rival's failure is a result
            failed.add(profile.name)
            store.add(replace(sample, note=f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]))
            continue
        sums = loss(own[1], trace.logits, ids[CONTEXT + 1 :])
        sample = replace(sample, tokens=len(trace.logits), note=profile.note, held_if_freed=trace.held_if_freed)
        sample = replace(sample, kl=sums["kl"], top1=sums["top1"], nll=sums["nll"], nll_raw=sums["nll_raw"])
        store.add(replace(sample, held_context=trace.held_context, held=trace.held))


def _run(args: argparse.Namespace, path: Path, texts: list[Tensor]) -> set[tuple[str, str]]:
    """Measures, or lists, the profiles that the arguments choose; returns their systems and names."""
    if args.threads:
        torch.set_num_threads(args.threads)
    store, wanted = Store(args.store), set()
    with torch.inference_mode():
        for name in args.engine or ENGINES:
            engine = ENGINES[name](path, args.threads)
            found = engine.profiles()
            chosen = [p for p in found if not args.profile or any(text in p.name for text in args.profile)]
            wanted |= {(p.system, p.name) for p in chosen}
            if args.list:
                print(*(f"{p.system}: {p.name}" for p in chosen), sep="\n")
            else:
                measure(engine, texts, chosen, store, lookup(DEFAULT_MODEL).kv_bytes_per_token)
    return wanted


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "quality.rivals",
        __doc__,
        quick="one window, transformers' quanto at 4 bits; two minutes",
        sizes={"windows": 1, "engine": ["transformers"], "profile": ["quanto 4"]},
    )
    parser.add_argument("--engine", nargs="+", choices=list(ENGINES), help="default: all")
    parser.add_argument("--profile", nargs="+", metavar="TEXT", help="only profiles whose name has TEXT")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of each engine (default: its own choice)")
    parser.add_argument("--store", metavar="FILE", default="out/rivals.jsonl", help="samples measured so far")
    parser.add_argument("--report", action="store_true", help="measure nothing, print all that the store has")
    parser.add_argument("--list", action="store_true", help="list the profiles and leave")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    from transformers import AutoTokenizer

    path = ensure_model(quiet=True)
    texts = windows(AutoTokenizer.from_pretrained(path), args.windows)
    wanted = None if args.report else _run(args, path, texts)
    if args.list:
        return
    samples = [
        s
        for s in Store(args.store).samples
        if s.window < args.windows and (wanted is None or (s.system, s.profile) in wanted)
    ]
    rows = to_rows(samples, texts)
    hidden = ("task", "kl", "ppl_rel", "top1", "score", "score_raw", "model", "windows")
    title = f"WikiText-2, second half, {args.windows} windows of {CONTEXT + TAIL} tokens, the last {TAIL} scored"
    print_table([{k: "-" if v is None else v for k, v in row.items() if k not in hidden} for row in rows], title)
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
