"""A step of the server has nothing for the host to wait for; and the imitated device notices what it would wait for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.launches.imitation import Imitation

PHASES = {
    "prefill": 3,
    "prefill_after_hits": 3,
    "decode": 0,
    "decode_filling_a_page": 0,
    "decode_opening_a_page": 2,
    "finish": 0,
}
"""Copies of each: ids of new pages in, and where a prefill's tiles lie; counts of committed ones out, of a decode
step's pages with the next forward."""


def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    """In a process of its own: constants that other tests have had made would be the host's, and copied in."""
    file = tmp_path / "rows.json"
    subprocess.run([sys.executable, "-m", "bench.launches", "--json", str(file)], check=True, capture_output=True)
    rows = {row["phase"]: row for row in json.loads(file.read_text())}
    assert {name: row["copies"] for name, row in rows.items()} == PHASES
    for row in rows.values():
        assert row["syncs"] == 0, row["waits"]
        assert row["ids_read_back"] == 0
    filling, opening, decode = (rows[f"decode{name}"] for name in ("_filling_a_page", "_opening_a_page", ""))
    assert decode["launches_per_layer"] == 4
    # Three more to pick the full pages' rows and thresholds and commit, and two for what a spare page is left with.
    assert rows["prefill"]["launches_per_layer"] <= 9
    assert decode["launches_per_layer"] == filling["launches_per_layer"] == opening["launches_per_layer"]
    assert decode["launches"] < opening["launches"]


ASKS: dict[str, Callable[[Tensor], object]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "a number": lambda x: int(x.sum()),
    "a truth": lambda x: bool((x > 1).any()),
    "item of a view": lambda x: x[1:2].item(),
    "an iteration": lambda x: [float(part) for part in x],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x),
    "a mask": lambda x: x[x > 1],
    "a mask written to": lambda x: x.index_put_((x > 1,), x.new_zeros(1)),
    "indices of the host": lambda x: x[torch.tensor([0, 1])],
    "equal": lambda x: torch.equal(x, x + 1),
    "a copy out": lambda x: torch.zeros(3).copy_(x),
    "a blocking copy in": lambda x: x + torch.ones(3).to(x.device),
    "a tensor made of a list": lambda x: torch.tensor([1, 2], device=x.device),
}


@pytest.mark.parametrize("name", ASKS)
def test_what_would_wait_is_noticed(name: str) -> None:
    device = Imitation()
    x = device.own(torch.tensor([1.0, 2.0, 3.0]))
    with device.active():
        counts = device.start()
        ASKS[name](x * 2)
    assert counts.syncs >= 1
    assert len(counts.waits) == counts.syncs


def test_launches_and_copies_are_told_from_what_the_host_does() -> None:
    device = Imitation()
    x = device.own(torch.tensor([1.0, 2.0, 3.0]))
    with device.active():
        counts = device.start()
        host = torch.arange(3) + 1
        assert host.tolist() == [1, 2, 3]
        there = host.to(x.device, non_blocking=True)
        y = (x[1:] * 2).view(2, 1)
        made = torch.zeros(3, device=x.device)
        made[there[:2] - 1] = y[:, 0]
    assert (counts.syncs, counts.copies) == (0, 1)
    # The product, zeros, the difference, the write.
    assert counts.launches == 4
    assert device.owns(there)
    assert device.owns(y)
    assert not device.owns(host)


def test_a_kernel_is_one_launch_and_a_late_copy_arrives_later() -> None:
    device = Imitation()
    x = device.own(torch.ones(3))
    with device.active():
        counts = device.start()
        out = device.kernel(lambda a: (a + 1) * int(a.sum()))(x)
        arrival = device.copy_out(out)
        assert not arrival.here()
        assert (counts.launches, counts.copies, counts.syncs) == (1, 1, 0)
        device.finish()
        arrival.wait()
        assert counts.syncs == 0
        device.copy_out(out).wait()
    assert counts.waits == ["Event.synchronize"]
