"""Machine code of a cubin: its instructions, the loop over pages, and the way through it that a whole page takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

_LINE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/")
_BRANCH = re.compile(r"BRA(?!\.DIV).*?0x([0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    """One of SASS. ``control`` is its second word: what it waits for and sets, and how long it stalls the issue."""

    address: int
    text: str
    control: int

    @cached_property
    def opcode(self) -> str:
        """Without its predicate and modifiers."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].split(".")[0]

    @cached_property
    def target(self) -> int | None:
        """Where it branches to; None for others, and for the exits of a diverged warp."""
        found = _BRANCH.search(self.text)
        return int(found[1], 16) if found else None

    @property
    def conditional(self) -> bool:
        """Whether a predicate guards it."""
        return self.text.startswith("@")


def instructions(cubin: bytes, kernel: str) -> list[Instruction]:
    """A kernel's, by the disassembler that comes with Triton.

    Raises:
        ValueError: for a kernel that the cubin does not have.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    for part in text.split("Function : ")[1:]:
        name, body = part.split("\n", 1)
        if name.strip() == kernel:
            return [Instruction(int(at, 16), what, int(word, 16)) for at, what, word in _LINE.findall(body)]
    raise ValueError(f"the cubin has no kernel {kernel}")


@dataclass(frozen=True)
class PageLoop:
    """The loop over pages of the attention kernel."""

    code: list[Instruction]
    first: int  # indices of its first and last instruction
    last: int

    @classmethod
    def of(cls, code: list[Instruction]) -> PageLoop:
        """The smallest loop that holds every tensor core product."""
        index = {x.address: i for i, x in enumerate(code)}
        products = [i for i, x in enumerate(code) if x.opcode == "IMMA"]
        loops = [
            (index[x.target], i)
            for i, x in enumerate(code)
            if x.target in index and index[x.target] < products[0] and i > products[-1]
        ]
        return cls(code, *min(loops, key=lambda loop: loop[1] - loop[0]))

    @cached_property
    def _index(self) -> dict[int, int]:
        return {x.address: i for i, x in enumerate(self.code)}

    def path(self, products: int, copies: int) -> list[Instruction]:
        """The way from the loop's head to its end that a page takes whose tokens are all there and alike.

        Of the ways with so many products, those that copy most of the next page, and of these the shortest: what is
        longer takes care of tokens that are missing or differ. Loops inside are gone through once.

        Raises:
            ValueError: where no way has as many products.
        """
        # By products and copies still to come, backwards from the end: (length, next index).
        best: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in range(self.last + 2)]
        best[self.last] = {(0, 0): (1, -1)}
        for i in range(self.last - 1, self.first - 1, -1):
            x = self.code[i]
            after = []
            target = self._index.get(x.target) if x.target is not None else None
            if target is None or x.conditional or target <= i:
                after.append(i + 1)
            if target is not None and i < target <= self.last:
                after.append(target)
            step = _counted(x)
            for j in after:
                for count, (length, _) in best[j].items():
                    key = (count[0] + step[0], count[1] + step[1])
                    known = best[i].get(key)
                    if key[1] <= copies and (known is None or length + 1 < known[0]):
                        best[i][key] = (length + 1, j)
        ways = [key for key in best[self.first] if key[0] == products]
        if not ways:
            raise ValueError(f"no way through the loop has {products} products, but {sorted(best[self.first])}")
        at, left, way = self.first, max(ways), []
        while at >= 0:
            x = self.code[at]
            way.append(x)
            at, left = best[at][left][1], (left[0] - _counted(x)[0], left[1] - _counted(x)[1])
        return way

    def copy_loop(self) -> tuple[list[Instruction], int]:
        """The loop inside that copies most at a time, and how many copies of 512 bytes it makes in a round."""
        found: list[list[Instruction]] = []
        for i in range(self.first, self.last):
            target = self._index.get(self.code[i].target or -1)
            if target is not None and self.first < target <= i:
                found.append(self.code[target : i + 1])
        found = [body for body in found if any(x.opcode == "LDGSTS" for x in body)]
        if not found:
            return [], 0
        body = max(found, key=lambda x: sum(y.opcode == "LDGSTS" for y in x) / len(x))
        return body, sum(x.opcode == "LDGSTS" for x in body)


def _counted(x: Instruction) -> tuple[int, int]:
    return int(x.opcode == "IMMA"), int(x.opcode == "LDGSTS")


def by_opcode(code: list[Instruction]) -> Counter[str]:
    """How many of each."""
    return Counter(x.opcode for x in code)
