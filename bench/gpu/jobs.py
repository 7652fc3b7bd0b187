"""What a worker runs: jobs, one after the other, each drawn from a seed that its line names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

import bench.common.checkout  # noqa: F401
from bench.gpu.shapes import MAIN, OTHERS, TINY, Shape
from leankv_kernels import Ops

MAIN_ROUNDS = 3


class Job(NamedTuple):
    """One thing to find out.

    Attributes:
        key: what it is about; after two failures of one key its other jobs are left out.
        name: of the job, for people.
        run: raises where something is wrong; what it returns is kept with the results.
    """

    key: str
    name: str
    run: Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Sizes:
    """How much a job takes on."""

    tokens: tuple[int, ...]  # contexts, drawn with equal chance
    requests: int
    queries: int  # of a tile
    pages: int  # committed in one go
    repeats: int  # of what must be the same again


GPU = Sizes((1200, 2500, 6000, 20_000), 6, 130, 12, 20)
EMULATED = Sizes((200, 1300), 2, 5, 3, 2)


@dataclass(frozen=True)
class Bench:
    """Where jobs run: the ops in question and the reference, on one device."""

    ops: Ops
    reference: Ops
    device: str
    seed: int
    small: bool = False  # sizes as emulated

    @property
    def on_gpu(self) -> bool:
        """Not emulated."""
        return self.device != "cpu"

    @property
    def sizes(self) -> Sizes:
        """Of its jobs."""
        return GPU if self.on_gpu and not self.small else EMULATED


def drawn(bench: Bench, kind: str, run: Callable[[Shape, Random, bool], dict[str, Any] | None]) -> Iterator[Job]:
    """Jobs without an end: the main shapes some times, then all, each time with one query a tile and with several."""
    main, others = (MAIN, OTHERS) if bench.on_gpu else ((TINY,), ())

    def run_one(shape: Shape, seed: str, many: bool) -> dict[str, Any] | None:
        return run(shape, Random(seed), many)

    def jobs(shapes: Sequence[Shape], number: int) -> Iterator[Job]:
        for shape in shapes:
            for many in (False, True):
                # Alone it says what happens: whatever ran before it, the same is drawn.
                seed = f"{bench.seed} {kind} {shape.name} {many} {number}"
                name = f"{shape.name}, {'several queries' if many else 'one query'} a tile, seed {seed!r}"
                key = f"{shape.name}{', several' if many else ''}"
                yield Job(key, name, partial(run_one, shape, seed, many))

    for number in range(MAIN_ROUNDS):
        yield from jobs(main, number)
    number = MAIN_ROUNDS
    while True:
        yield from jobs((*main, *others), number)
        number += 1


def main_jobs() -> int:
    """How many of ``drawn`` are of the main shapes alone."""
    return 2 * MAIN_ROUNDS * len(MAIN)
