"""The radix tree as an icicle: which nodes are drawn, and where.

A row is a level of the tree. A node is as wide as its tokens and those of all below it, and lies beneath the node that
it continues. What would be too narrow to see is drawn as one box, which says how many nodes it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from leankv_sglang.observability.live.tree_rows import ROOT

MOST_LEVELS = 16
MOST_BOXES = 400
LEAST_WIDTH = 1 / 400
"""Of the picture; a box of less is hard to hit with a mouse."""
GIVEN_UP = -1
"""The row of a box that stands for several nodes."""


@dataclass(frozen=True)
class Box:
    """A rectangle: the row of its node, or :data:`GIVEN_UP`; left edge and width as parts of the picture; its level;
    and how many nodes and tokens it stands for."""

    row: int
    x: float
    width: float
    level: int
    nodes: int
    tokens: int


@dataclass(frozen=True)
class Icicle:
    """What is drawn, and what the whole tree has."""

    boxes: list[Box]
    levels: int
    nodes: int
    tokens: int

    @property
    def shown(self) -> int:
        """Nodes that have a box of their own."""
        return sum(box.row != GIVEN_UP for box in self.boxes)


def lay_out(rows: NDArray[Any], most_boxes: int = MOST_BOXES, least_width: float = LEAST_WIDTH) -> Icicle:
    """Boxes of a tree whose rows come parents first; a parent that is not among them counts as the root."""
    place = {node: i for i, node in enumerate(rows["node"].tolist())}
    parent = [place.get(above, -1) if above != ROOT else -1 for above in rows["parent"].tolist()]
    tokens, nodes = rows["tokens"].tolist(), [1] * len(rows)
    below: list[list[int]] = [[] for _ in tokens]
    tops: list[int] = []
    for i, above in enumerate(parent):
        (below[above] if above >= 0 else tops).append(i)
    for i in range(len(tokens) - 1, -1, -1):
        if parent[i] >= 0:
            tokens[parent[i]] += tokens[i]
            nodes[parent[i]] += nodes[i]
    total = sum(tokens[i] for i in tops)
    while True:
        boxes = _boxes(tops, below, tokens, nodes, max(total, 1), least_width)
        if len(boxes) <= most_boxes:
            break
        least_width *= 1.5
    return Icicle(boxes, 1 + max((box.level for box in boxes), default=0), len(rows), total)


def _boxes(
    tops: list[int], below: list[list[int]], tokens: list[int], nodes: list[int], total: int, least_width: float
) -> list[Box]:
    boxes: list[Box] = []
    levels = [(tops, 0.0)]
    for level in range(MOST_LEVELS):
        following: list[tuple[list[int], float]] = []
        for children, x in levels:
            given_up = [0, 0]
            for i in children:
                width = tokens[i] / total
                if width < least_width or (level == MOST_LEVELS - 1 and below[i]):
                    given_up[0] += nodes[i]
                    given_up[1] += tokens[i]
                    continue
                boxes.append(Box(i, x, width, level, nodes[i], tokens[i]))
                following.append((below[i], x))
                x += width
            if given_up[0]:
                boxes.append(Box(GIVEN_UP, x, given_up[1] / total, level, *given_up))
        levels = following
    return boxes
