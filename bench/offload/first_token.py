"""Time to the first token of a prefix that is computed, or lies on the device, in host memory, on disk, in Mooncake."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from tqdm import tqdm

from bench.common.data import random_prompts
from bench.common.server import Server, serve
from bench.offload.master import has_mooncake, mooncake_master
from leankv_sglang.models import DEFAULT_MODEL
from leankv_sglang.models.catalog import lookup

PAGE = 128
COMPUTED, DEVICE, HOST, DISK, MOONCAKE = "recomputed", "device", "host memory", "disk", "Mooncake (TCP)"
POOL = 12_288


def beyond(server: Server) -> dict[str, Any]:
    """What a server says of pages beyond the device."""
    figures: dict[str, Any] = server.info()["leankv"]["offload"]
    return figures


def settled(server: Server, place: str) -> dict[str, Any]:
    """The same of one place, once nothing is written there any more."""
    before = -1
    while (now := beyond(server)["places"][place])["puts"] != before:
        before = now["puts"]
        time.sleep(0.5)
    held: dict[str, Any] = now
    return held


def first_token(server: Server, prompt: list[int], cached: int) -> float:
    """Milliseconds to the first token, of which so many prompt tokens are cached.

    Raises:
        RuntimeError: where another number is.
    """
    start = time.monotonic()
    moment, meta = next(server.stream(prompt, 1))
    if meta["cached_tokens"] != cached:
        raise RuntimeError(f"{meta['cached_tokens']} tokens were cached, not {cached}: nothing was shown")
    return 1000 * (moment - start)


def crowd_out(server: Server, longest: int) -> None:
    """Fill the device with other prompts, until nothing else is left there."""
    for prompt in random_prompts(4 * POOL // longest + 3, longest, longest, random.randrange(1 << 30)):
        server.generate(prompt, 1)


def first_tokens(lengths: Sequence[int], rounds: int, places: Sequence[str]) -> list[dict[str, Any]]:
    """A row a place: milliseconds for each length, and bytes a token there."""
    times: dict[str, dict[int, list[float]]] = {place: {n: [] for n in lengths} for place in places}
    bytes_of: dict[str, float] = {}
    common = ("--max-total-tokens", str(POOL), "--max-running-requests", "4")
    stores = [place for place in (DISK, MOONCAKE) if place in places]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for place in stores:
            where = f"file:{folder}" if place == DISK else stack.enter_context(mooncake_master())[0]
            size = ("--leankv-store", where, "--leankv-store-size", "1GiB", "--leankv-load", "always")
            with serve(*common, *size) as server:
                name = "disk" if place == DISK else "mooncake"
                _measure(server, times, lengths, rounds, place, partial(_leave_store, name=name))
                bytes_of[place] = beyond(server)["bytes_out"] / (beyond(server)["pages_out"] * PAGE)
        if HOST in places:
            with serve(*common, "--leankv-host-memory", "2GiB") as server:
                _measure(server, times, lengths, rounds, HOST, partial(crowd_out, longest=max(lengths)))
                bytes_of[HOST] = beyond(server)["bytes_out"] / (beyond(server)["pages_out"] * PAGE)
                bytes_of[DEVICE] = (
                    server.info()["leankv"]["bytes_once_trimmed"] / server.info()["leankv"]["tokens_held"]
                )
    raw = lookup(DEFAULT_MODEL).kv_bytes_per_token
    rows = []
    for place in places:
        medians = {f"{n:,} tokens": statistics.median(found) for n, found in times[place].items() if found}
        held = bytes_of.get(place)
        rows.append({"from": place, **medians, "bytes a token": held, "x 16 bits": raw / held if held else None})
    return rows


def _leave_store(server: Server, name: str) -> None:
    settled(server, name)
    server.flush()


def _measure(
    server: Server,
    times: dict[str, dict[int, list[float]]],
    lengths: Sequence[int],
    rounds: int,
    place: str,
    leave: Callable[[Server], None],
) -> None:
    """Each prefix computed, then from the device; and, once all have left that, from the place."""
    # One token more than whole pages: all of them can be hits.
    prompts = [(n, random_prompts(1, n + 1, n + 1, 100 * i + n)[0]) for i in range(rounds) for n in lengths]
    with tqdm(total=2 * len(prompts), desc=place, unit="prefix") as bar:
        for whats in ((COMPUTED, DEVICE), (place,)):
            if whats == (place,):
                leave(server)
            for length, prompt in prompts:
                for what in whats:
                    value = first_token(server, prompt, 0 if what == COMPUTED else length)
                    if what in times:
                        times[what][length].append(value)
                bar.update()


def all_places() -> list[str]:
    """Those that can be measured here."""
    return [COMPUTED, DEVICE, HOST, DISK, *([MOONCAKE] if has_mooncake() else [])]
