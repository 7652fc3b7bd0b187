"""SGLang's own dense-attention cases, with our backend in its most exact setting."""

from __future__ import annotations

import unittest

import pytest
import torch
from sglang.test.kits.attention_unittest.attention_methods import dense_attention as kit

from leankv_sglang.config import LeanKVConfig

# Page size 1 is refused at start: a page is the unit that is compressed.
CASES = [case for case in kit.make_dense_cases("leankv") if case.page_size > 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "shuffled_pages"])
def test_upstream_case(case: kit.DenseAttentionCase, layout: str, configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig("k8v8", "k8v8"))
    fixture = kit.build_dense_attention_fixture(
        unittest.TestCase(), case, dtype=torch.float32, device="cpu", loc_layout=layout
    )
    with torch.no_grad():
        actual = kit.run_dense_fixture_eager(fixture)
        expected = kit.expected_dense_fixture_output(fixture)
    torch.testing.assert_close(actual, expected, atol=kit.DENSE_ATOL, rtol=kit.DENSE_RTOL)


def test_every_upstream_case_but_page_size_one_is_run() -> None:
    assert len(CASES) == 11
