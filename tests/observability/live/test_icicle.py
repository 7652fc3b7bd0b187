"""Boxes lie beneath what they continue, side by side, and stand for every node once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv_sglang.observability.live.page.icicle import GIVEN_UP, LEAST_WIDTH, MOST_BOXES, MOST_LEVELS, lay_out
from leankv_sglang.observability.live.tree_rows import NODE_ROW, ROOT


def tree(parents: list[int], tokens: list[int]) -> np.ndarray:
    """Rows of nodes 1, 2, ...; a node's parent is an earlier one, or the root."""
    rows = np.zeros(len(parents), NODE_ROW)
    rows["node"] = np.arange(1, len(parents) + 1)
    rows["parent"], rows["tokens"] = parents, tokens
    return rows


@st.composite
def trees(draw: st.DrawFn) -> np.ndarray:
    count = draw(st.integers(0, 60))
    parents = [draw(st.integers(0, i)) for i in range(count)]
    return tree(parents, draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count)))


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from([LEAST_WIDTH, 0.05, 0.3]), st.sampled_from([5, 40, MOST_BOXES]))
def test_every_node_is_somewhere_and_nothing_overlaps(rows: np.ndarray, least: float, most: int) -> None:
    drawn = lay_out(rows, most, least)
    assert len(drawn.boxes) <= max(most, 1)
    assert drawn.nodes == len(rows)
    assert drawn.tokens == rows["tokens"].sum()
    place = {int(rows["node"][box.row]): box for box in drawn.boxes if box.row != GIVEN_UP}
    shown = sum(1 for box in drawn.boxes if box.row != GIVEN_UP)
    assert drawn.shown == shown
    assert shown + sum(box.nodes for box in drawn.boxes if box.row == GIVEN_UP) == len(rows)
    for node, box in place.items():
        above = int(rows["parent"][node - 1])
        if above != ROOT:
            parent = place[above]
            assert box.level == parent.level + 1
            assert parent.x - 1e-9 <= box.x
            assert box.x + box.width <= parent.x + parent.width + 1e-9
    for level in range(drawn.levels):
        line = sorted((box.x, box.x + box.width) for box in drawn.boxes if box.level == level)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(line))
        assert not line or (line[0][0] >= 0 and line[-1][1] <= 1 + 1e-9)


def test_a_large_tree_is_cut_to_what_fits() -> None:
    rows = tree([ROOT] * 9_000 + list(range(1, 1_001)), [64] * 10_000)
    drawn = lay_out(rows)
    assert len(drawn.boxes) <= MOST_BOXES
    assert sum(box.nodes for box in drawn.boxes if box.level == 0) == 10_000


def test_a_deep_tree_ends_in_a_box_for_the_rest() -> None:
    drawn = lay_out(tree(list(range(100)), [64] * 100))
    assert drawn.levels == MOST_LEVELS
    last = drawn.boxes[-1]
    assert (last.row, last.nodes) == (GIVEN_UP, 100 - MOST_LEVELS + 1)


def test_a_node_whose_parent_went_meanwhile_is_drawn_at_the_top() -> None:
    rows = tree([ROOT, 77], [10, 30])
    assert [box.level for box in lay_out(rows).boxes] == [0, 0]


def test_nothing_is_drawn_of_nothing() -> None:
    drawn = lay_out(np.zeros(0, NODE_ROW))
    assert (drawn.boxes, drawn.nodes, drawn.tokens) == ([], 0, 0)
