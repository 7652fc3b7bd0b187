"""The bytes of a page outside the device: read as they were written, or not at all."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leankv_kernels import get_ops
from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR
from leankv_sglang.offload.page_object import (
    COUNTS,
    ObjectError,
    PageName,
    Part,
    read_object,
    to_objects,
    to_packed,
    write_object,
)
from tests.kernels.test_packing import LAYERS as STORE_LAYERS
from tests.kernels.test_packing import PAGES, filled
from tests.offload.objects import IDENTITY, LAYERS, OTHER, name_of, object_of

PARTS = st.sampled_from(Part)


@given(number=st.integers(0, 2**256 - 1), part=PARTS, data=st.data())
def test_what_is_read_is_what_was_written(number: int, part: Part, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=5)))
    counts = np.array(data.draw(st.lists(st.integers(-1, 2**31 - 1), min_size=COUNTS, max_size=COUNTS)), np.int32)
    body = data.draw(st.binary(min_size=int(lengths.sum()), max_size=int(lengths.sum())))
    name = name_of(number, part)
    found = read_object(name, IDENTITY, len(lengths), write_object(name, IDENTITY, counts, lengths, memoryview(body)))
    assert found.data == body
    assert np.array_equal(found.counts, counts)
    assert np.array_equal(found.lengths, lengths)


@given(number=st.integers(0, 9), part=PARTS, data=st.data())
def test_damage_anywhere_is_noticed(number: int, part: Part, data: st.DataObject) -> None:
    name = name_of(number, part)
    whole = object_of(name)
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "gap", "noise"]))
    bad = {
        "flip": whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :],
        "cut": whole[:at],
        "longer": whole + whole[: at + 1],
        "gap": whole[:at] + whole[at + 1 :],
        "noise": random.Random(at).randbytes(len(whole)),
    }[kind]
    with pytest.raises(ObjectError):
        read_object(name, IDENTITY, LAYERS, bad)


def test_another_page_part_identity_or_shape_is_noticed() -> None:
    name = name_of(1)
    whole = object_of(name)
    assert read_object(name, IDENTITY, LAYERS, whole)
    for other in (name_of(2), name_of(1, Part.NEAR)):
        with pytest.raises(ObjectError, match="another page"):
            read_object(other, IDENTITY, LAYERS, whole)
    with pytest.raises(ObjectError, match="another page"):
        read_object(name, OTHER, LAYERS, whole)
    for layers in (LAYERS - 1, LAYERS + 1, 10_000):
        with pytest.raises(ObjectError):
            read_object(name, IDENTITY, layers, whole)


def test_pages_survive_the_way_through_objects() -> None:
    store, ops = filled(("k8v4", "k4v2"), True, 2, 64, 3), get_ops("cpu", "cpu")
    pages = torch.tensor([2, 4, 5])
    packed = ops.pack_pages(store, pages, torch.tensor([LEVEL_FAR, LEVEL_NEAR, LEVEL_NEAR]))
    keys = [name_of(int(page)).key for page in pages]
    objects = to_objects(keys, IDENTITY, store.count_pages(pages).numpy(), packed)
    assert set(objects) == {*(PageName(k, Part.FAR) for k in keys), *(PageName(k, Part.NEAR) for k in keys[1:])}
    read = {name: read_object(name, IDENTITY, STORE_LAYERS, data) for name, data in objects.items()}
    far = [read[PageName(key, Part.FAR)] for key in keys]
    again = to_packed(far, [read.get(PageName(key, Part.NEAR)) for key in keys])
    assert all(torch.equal(*pair) for pair in zip(packed, again, strict=True))
    assert len(pages) < PAGES
