"""How far do answers of two instruction sets part? ``python -m bench.instruction_sets``.

The C++ rounds the same way whatever the batch, but not whatever the CPU: AVX2, AVX-512 and portable code order their
sums otherwise. Each set scores the same text with the default model and profile, in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import default_tokens
from bench.common.processes import output_of
from bench.common.table import print_table, write_json
from leankv_kernels.cpu import ISA_ENV
from leankv_sglang.errors import LeanKVError

PAGE = 128


def score(tokens: int) -> tuple[Tensor, Tensor]:
    """Log-probability of each next token of a passage, and the most likely one: ``[tokens - 1]`` each."""
    from leankv_sglang.compression.profile import chosen_profile
    from leankv_sglang.models import ensure_model
    from leankv_sglang.offline.packed import PackedModel

    folder = str(ensure_model(quiet=True))
    model, profile = PackedModel.load(folder)[0], chosen_profile(None, folder, PAGE, "auto")
    assert profile is not None
    ids = default_tokens()[:tokens]
    cache = model.cache(profile.config, PAGE, 1, len(ids) + PAGE)
    hidden = model.prefill(cache, [(cache.new(len(ids)), ids)])[0]
    scores = model.logits(hidden[:-1]).log_softmax(-1)
    return scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])], scores.argmax(-1)


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "instruction_sets",
        __doc__,
        quick="300 tokens; half a minute",
        sizes={"tokens": 300},
    )
    parser.add_argument("--sets", nargs="+", default=["avx2", "portable"], help="avx512 too, where the CPU has it")
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--into", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    if args.into:
        torch.save(score(args.tokens), args.into)
        return
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for isa in tqdm(args.sets, unit="set"):
            file = Path(folder) / isa
            flags = ["--tokens", str(args.tokens), "--into", str(file)]
            code, _ = output_of([sys.executable, "-m", "bench.instruction_sets", *flags], {ISA_ENV: isa})
            if code:
                raise LeanKVError(f"The instruction set {isa} could not score the text; the reason is above.")
            found[isa] = torch.load(file)
    rows = []
    for (a, (logprobs, top)), (b, (others, their_top)) in itertools.combinations(found.items(), 2):
        off = (logprobs - others).abs()
        rows.append(
            {
                "sets": f"{a}, {b}",
                "tokens": len(off),
                "mean_log_probability_off": round(float(off.mean()), 4),
                "at_most": round(float(off.max()), 3),
                "top_token_differs": f"{float((top != their_top).float().mean()):.1%}",
            }
        )
    print_table(rows, "The same text, scored by two instruction sets")
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
