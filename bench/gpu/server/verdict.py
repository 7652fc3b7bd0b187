"""The lines that a run has to answer, from what it found: yes, no or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

Found = dict[str, Any]
Answer = tuple[bool | None, str]
WORDS = {True: "yes", False: "no", None: "not measured"}
THREE, AS_FAST = 3.0, 0.97


def verdicts(found: Found) -> list[dict[str, str]]:
    """A row for each line."""
    lines: list[tuple[str, Callable[[Found], Answer]]] = [
        ("the server starts, and decodes in CUDA graphs", _starts),
        ("SmolLM2 answers sensibly", partial(_sensible, system="lean")),
        ("Qwen2.5-0.5B answers sensibly", partial(_sensible, system="qwen")),
        ("a hit equals its miss in text", partial(_equal, system="lean", what="same_text")),
        ("a hit equals its miss to the bit, deterministic", partial(_equal, system="deterministic", what="bit_equal")),
    ]
    for step, of in (("speed", "SmolLM2"), ("llama_speed", "Llama-3-8B's shape")):
        lines += [
            (f"decode at 1 to 64 x 2k no slower than stock, {of}", partial(_steps, step=step, of=_short)),
            (f"decode from 8 x 6k on faster than stock, {of}", partial(_steps, step=step, of=_long)),
        ]
    lines += [
        (f"chat, memory binds: {THREE:g}x stock, SmolLM2", partial(_chat, step="chat_tight", times=THREE)),
        (
            f"chat, memory binds: {THREE:g}x stock, Llama-3-8B's shape",
            partial(_chat, step="llama_chat_tight", times=THREE),
        ),
        (f"chat, memory does not bind: {AS_FAST:g}x stock, SmolLM2", partial(_chat, step="chat_roomy", times=AS_FAST)),
        ("no host gap over 100 us in a steady decode step", _gaps),
    ]
    return [{"line": line, "answer": WORDS[yes], "found": what} for line, (yes, what) in _asked(lines, found)]


def _asked(lines: Sequence[tuple[str, Callable[[Found], Answer]]], found: Found) -> list[tuple[str, Answer]]:
    small = found.get("sizes") != "gpu"
    # Tiny sizes on a CPU try the code; what they take says nothing of the lines.
    return [(line, _no_verdict(ask(found)) if small else ask(found)) for line, ask in lines]


def _no_verdict(answer: Answer) -> Answer:
    return None, f"(tried small) {answer[1]}" if answer[1] else ""


def _starts(found: Found) -> Answer:
    lean = (found.get("start") or {}).get("lean")
    if lean is None:
        return None, ""
    if lean["ready_s"] is None:
        return False, str(lean["why"])[:120]
    graphs = (found.get("graph_steps") or {}).get("lean")
    said = {True: "graphs replayed", False: "no step in a graph", None: "graphs not seen in its log"}[graphs]
    return graphs, f"ready after {lean['ready_s']:.0f} s, {said}"


def _sensible(found: Found, system: str) -> Answer:
    said = (found.get("answers") or {}).get(system)
    return (None, "") if said is None else (said["right"] == said["of"], f"{said['right']} of {said['of']}")


def _equal(found: Found, system: str, what: str) -> Answer:
    rows = (found.get("hit_miss") or {}).get(system) or []
    if not rows:
        return None, ""
    parts = [f"{row['compared']} {row[what]}/{row['n']} drift {row['max_drift']:.2g}" for row in rows]
    hits = all(row["cached_tokens"] for row in rows if row["compared"].startswith("hit"))
    all_equal = all(row[what] == row["n"] for row in rows)
    # Yes needs all three comparisons, and hits that were hits.
    return (all_equal and hits if len(rows) == 3 or not all_equal else None), "; ".join(parts)


def _short(row: Found) -> bool:
    return bool(row["context"] <= 2048)


def _long(row: Found) -> bool:
    return bool(row["context"] > 2048)


def _steps(found: Found, step: str, of: Callable[[Found], bool]) -> Answer:
    rows = [row for row in found.get(step) or [] if row["system"] == "lean" and "step_ms_of_stock" in row and of(row)]
    parts = [
        f"{row['batch']} x {row['context']}: {row['step_ms']['median']:.2f} ms, "
        f"{row['step_ms_of_stock']['median']:.2f}x ({row['step_ms_of_stock']['low']:.2f}-"
        f"{row['step_ms_of_stock']['high']:.2f})"
        for row in rows
    ]
    wanted = {1, 8, 64} if of is _short else {8}
    slow = [row for row in rows if not _fast_enough(row["step_ms_of_stock"]["median"], of is _long)]
    if slow:
        return False, "; ".join(parts)
    return (True if wanted <= {row["batch"] for row in rows} else None), "; ".join(parts)


def _fast_enough(ratio: float, faster: bool) -> bool:
    return ratio < 1.0 if faster else ratio <= 1.0


def _chat(found: Found, step: str, times: float) -> Answer:
    rows = {row["system"]: row for row in found.get(step) or []}
    if set(rows) != {"lean", "stock"}:
        return None, ""
    ratio = rows["lean"]["tok_per_s"] / rows["stock"]["tok_per_s"]
    hits = ", ".join(f"{name} {row['tok_per_s']:,.0f} tok/s, hits {row['hit_rate']:.0%}" for name, row in rows.items())
    return ratio >= times, f"{ratio:.2f}x: {hits}"


def _gaps(found: Found) -> Answer:
    seen = (found.get("gaps") or {}).get("lean")
    if not seen:
        return None, ""
    stock = (found.get("gaps") or {}).get("stock")
    beside = f"; stock {stock['longest_us']:.0f} us" if stock else ""
    return seen["over_100us"] == 0, f"longest {seen['longest_us']:.0f} us, {seen['over_100us']} over 100 us{beside}"
