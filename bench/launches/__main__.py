"""What one step of the server gives a GPU to do, and where the host would wait for it, counted without a GPU.

``python -m bench.launches`` runs the memory and attention side of a server around a tiny model on an imitated device
(see ``imitation``). For each phase: ``syncs``, where the host would wait for the device; ``copies`` between host and
device, those of the plan apart; launches in one layer and in the whole step. Our backend's ops count as one launch
each, SGLang's kernel that writes a batch's rows as none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.table import print_table, write_json
from bench.launches.imitation import Imitation
from bench.launches.server import LAYERS, PAGE, TinyServer
from leankv_sglang.config import LeanKVConfig

PHASES = 6
LENGTH = 4 * PAGE - 8
"""Tokens of a prompt."""


def _prompt(seed: int, length: int = LENGTH) -> list[int]:
    return [(1000 * seed + i) % 997 for i in range(length)]


def measure(requests: int) -> list[dict[str, Any]]:
    """A row for each phase of a server's life, in which the steps before have been the same."""
    device = Imitation()
    server = TinyServer(device, LeanKVConfig(kernels="reference"))
    rows: list[dict[str, Any]] = []

    def phase(name: str, step: Callable[[], None], forward: bool = True) -> None:
        # Of the step before the device has done all but the last thing by now, as beside an overlapping scheduler.
        counts, server.plan_copies, server.in_layers = device.start(), 0, 0
        reads = server.pool.slot_reader.reads
        step()
        rows.append(
            {
                "phase": name,
                "syncs": counts.syncs,
                "copies": counts.copies,
                "plan_copies": server.plan_copies,
                "launches_per_layer": server.in_layers // LAYERS if forward else 0,
                "launches": counts.launches,
                "ids_read_back": server.pool.slot_reader.reads - reads,
                "waits": ", ".join(sorted(set(counts.waits))),
            }
        )
        device.finish()
        bar.update()

    with device.active(), tqdm(total=PHASES, unit="phase") as bar:
        phase("prefill", lambda: server.prefill([_prompt(i) for i in range(requests)]))
        phase("prefill_after_hits", lambda: server.prefill([_prompt(0, 2 * LENGTH)]))
        phase("decode", server.decode)
        while server.running[0].kv.kv_allocated_len % PAGE != PAGE - 1:
            server.decode()
            device.finish()
        phase("decode_filling_a_page", server.decode)
        phase("decode_opening_a_page", server.decode)
        phase("finish", server.finish, forward=False)
    server.pool.settle()
    if problems := server.allocator.verify_byte_accounting():
        raise RuntimeError("; ".join(problems))
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "launches",
        __doc__,
        quick="2 requests in the batch, not 8; half a minute",
        sizes={"requests": 2},
    )
    parser.add_argument("--requests", type=int, default=8, help="in the batch")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows = measure(args.requests)
    print_table(rows, f"{args.requests} requests, {LAYERS} layers")
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
