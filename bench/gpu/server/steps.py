"""What is done, most telling first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.common.server import Server
from bench.gpu.server import answers, chat, memory, models, speed, trace
from bench.gpu.server.fleet import Fleet, System
from bench.gpu.server.run import Clock, Run
from bench.gpu.server.sizes import Chat, Sizes, write_shape
from bench.gpu.server.texts import passages, random_tokens, tokens
from bench.serving.equal import units_for
from leankv_sglang.models.catalog import DEFAULT_MODEL
from leankv_sglang.models.shape import read_shape

QWEN = "Qwen2.5-Coder-0.5B-Instruct"
SHAPE_TIERS = ("--leankv-tiers", "k4v2")
"""Of the model without weights: its keys are random, which tells nothing of tiers, so all tokens have one that takes
what a token takes on average with SmolLM2's near-lossless profile (docs/benchmarks.md)."""


RESULTS = (
    *("models", "start", "answers", "hit_miss", "speed", "gaps", "chat_tight", "chat_roomy"),
    *("llama_start", "llama_speed", "llama_chat_start", "llama_chat_tight"),
)
"""What is found, by step."""
TRACE_BYTES = 12 << 20
"""A larger one is not kept."""
PYTHON_TREE = (("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python"),)
"""Stock SGLang's tree is a compiled library that goes with some releases of torch; where it does not start, once more
without."""
AGAIN = 30.0
Pair = tuple[str, str]
"""Names of a server of ours and of stock."""


class Steps:
    """All of them, on one machine.

    Args:
        run: keeps results.
        fleet: keeps servers.
        sizes: how much.
        on_gpu: whether there is one.
        pack: the folder of the pack.
        model: a folder in place of SmolLM2.
    """

    def __init__(self, run: Run, fleet: Fleet, sizes: Sizes, on_gpu: bool, pack: Path, model: Path | None) -> None:
        self.run, self.fleet, self.sizes, self.on_gpu, self.pack = run, fleet, sizes, on_gpu, pack
        self.folders: dict[str, Path | None] = {DEFAULT_MODEL: model, QWEN: None}
        self.own_model = model is not None
        # A CPU tries the code: its small pools are not small, and one pair of servers does for both.
        self.tight = ("tight-lean", "tight-stock") if on_gpu else ("lean", "stock")
        self.shape = write_shape(fleet.folder / "llama-shape", sizes.llama)

    def prepare(self) -> None:
        """Models alone."""
        self.run.step("models", 60, self._models)

    def all(self) -> None:
        """In order; each goes on behind the failure of others. What is not measured stays null."""
        for name in RESULTS:
            self.run.found.setdefault(name, None)
        self.prepare()
        model, load = self.folders[DEFAULT_MODEL], self.sizes.chat
        why = "" if model else "no model with weights"
        if model:
            self._start("start", 180, lambda: self._systems(model))
        self.run.step("answers", 25, lambda _: self._answers(), (), "made-up weights" if self.own_model else why)
        self.run.step("hit_miss", 60, self._hit_miss, (), why)
        self.run.step("speed", 100, self._speed, (), why)
        self._notes("speed")
        self.run.step("gaps", 45, self._gaps, ("lean",), why)
        self.fleet.stop(["eager", "deterministic", "qwen"])
        for name, pair in {"tight": self.tight, "roomy": ("lean", "stock")}.items():
            work = partial(self._chat, pair=pair, ids=partial(tokens, str(model), self.sizes.text), load=load)
            self.run.step(f"chat_{name}", 50, work, pair, why)
        self._notes("chat")
        self.fleet.stop()
        self._without_weights()

    def _without_weights(self) -> None:
        ids = partial(random_tokens, self.sizes.llama["vocab_size"])
        pair, load = ("llama-lean", "llama-stock"), self.sizes.llama_chat
        common = ("--max-total-tokens", str(self.sizes.pool(self.sizes.llama_shapes)))
        self._start("llama_start", 120, lambda: self._pair(pair, common, common))
        self.run.step("llama_speed", 70, partial(self._llama_speed, ids=ids, pair=pair), pair)
        if self.on_gpu:
            self.fleet.stop()
            pair, tokens_held = ("llama-tight-lean", "llama-tight-stock"), int(load.tight * load.distinct)
            self._start(
                "llama_chat_start",
                90,
                lambda: self._pair(pair, *self._equal(self.shape, tokens_held, load.clients, SHAPE_TIERS)),
            )
        self.run.step("llama_chat_tight", 80, partial(self._chat, pair=pair, ids=ids, load=load), pair)

    def _start(self, step: str, limit: float, systems: Callable[[], dict[str, System]]) -> None:
        """Begin servers, and say how that went."""
        self.run.step(step, limit, lambda clock: self._begin(clock, systems()))
        for name, how in (self.run.found[step] or {}).items():
            said = how["why"] or f"answers after {how['ready_s']:.0f} s"
            print(f"         {name}: {said}", flush=True)
        self._notes(step)

    def _begin(self, clock: Clock, systems: dict[str, System]) -> dict[str, Any]:
        found = self.fleet.start(systems, clock.left())
        failed = {name: system for name, system in systems.items() if system.stock and found[name]["ready_s"] is None}
        if failed and clock.left() > AGAIN:
            again = {name: system._replace(env=PYTHON_TREE) for name, system in failed.items()}
            for name, how in self.fleet.start(again, clock.left()).items():
                found[name] = how | {"python_tree": True, "at_first": found[name]["why"]}
        return found

    def _systems(self, model: Path) -> dict[str, System]:
        """Servers of the model with weights, all up at once; who measures one lets the others idle."""
        load, sizes = self.sizes.chat, self.sizes
        where = ("--model-path", str(model))
        roomy = max(int(1.6 * load.distinct), sizes.pool(sizes.shapes))
        ours, stock = self._equal(model, roomy, max(sizes.requests, load.clients), ())
        found = {
            "lean": System(False, (*where, *ours)),
            "stock": System(True, (*where, *stock, *self._stock())),
        }
        if self.on_gpu:
            tight, tight_stock = self._equal(model, int(load.tight * load.distinct), load.clients, ())
            found["deterministic"] = System(False, (*where, *ours, "--enable-deterministic-inference"))
            found["tight-lean"] = System(False, (*where, *tight))
            found["tight-stock"] = System(True, (*where, *tight_stock, *self._stock()))
            found["eager"] = System(False, (*where, *ours, "--disable-cuda-graph"))
        if qwen := self.folders[QWEN]:
            found["qwen"] = System(False, ("--model-path", str(qwen), "--max-total-tokens", "65536"))
        return found

    def _pair(self, names: Pair, ours: tuple[str, ...], stock: tuple[str, ...]) -> dict[str, System]:
        """Ours and stock on the shape without weights."""
        common = ("--model-path", str(self.shape), "--load-format", "dummy", "--skip-tokenizer-init")
        requests = () if "--max-running-requests" in ours else ("--max-running-requests", str(self.sizes.requests))
        return {
            names[0]: System(False, (*common, *ours, *requests, *SHAPE_TIERS)),
            names[1]: System(True, (*common, *stock, *requests, *self._stock())),
        }

    def _equal(
        self, folder: Path, tokens: int, requests: int, flags: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Flags of ours and of stock with the bytes of so many tokens in 16 bits."""
        units = units_for(tokens * read_shape(folder).token_bytes, str(folder), flags, requests)
        rest = ("--max-running-requests", str(requests))
        return ("--max-total-tokens", str(units), *rest), ("--max-total-tokens", str(tokens), *rest)

    def _stock(self) -> tuple[str, ...]:
        return ("--attention-backend", "triton") if self.on_gpu else ()

    def _notes(self, when: str) -> None:
        """Memory, and whether graphs run, as it is now."""
        servers = self.fleet.running(list(self.fleet.servers))
        self.run.found.setdefault("memory", {})[when] = {
            "gpu_mib": memory.used_mib(),
            "by_server_mib": memory.used_by(servers),
        }
        graphs = self.run.found.setdefault("graph_steps", {})
        graphs |= {name: self.fleet.graph_steps(name) if self.on_gpu else None for name in servers}

    def _models(self, _: Clock) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, folder in self.folders.items():
            if folder is not None:
                found[name] = "given"
            elif name == DEFAULT_MODEL or not self.own_model:
                self.folders[name], found[name] = models.find_model(name, self.pack)
        return found

    def _answers(self) -> dict[str, Any]:
        servers = self._some("lean", "stock", "qwen")
        found = {name: answers.sensible(server) for name, server in servers.items()}
        return found | {"account": {name: memory.account(server) for name, server in servers.items()}}

    def _hit_miss(self, clock: Clock) -> dict[str, Any]:
        # Without graphs where the server with them does not run.
        ours = "lean" if self.fleet.running(("lean",)) else "eager"
        found: dict[str, Any] = {}
        for name, server in self._some(ours, "deterministic", "stock", "qwen").items():
            folder = self.folders[QWEN if name == "qwen" else DEFAULT_MODEL]
            ids = tokens(str(folder), self.sizes.text)
            prompts = passages(ids, self.sizes.prompts, self.sizes.low, self.sizes.high, seed=1)
            found[name] = answers.hit_and_miss(server, prompts, self.sizes.answer, clock.in_time)
        return found

    def _speed(self, clock: Clock) -> list[dict[str, Any]]:
        servers = self._some("lean", "stock", "eager")
        return self._beside(
            clock, servers, tokens(str(self.folders[DEFAULT_MODEL]), self.sizes.text), self.sizes.shapes
        )

    def _llama_speed(self, clock: Clock, ids: Callable[[], list[int]], pair: Pair) -> list[dict[str, Any]]:
        return self._beside(clock, self._named(pair), ids(), self.sizes.llama_shapes)

    def _beside(
        self, clock: Clock, servers: dict[str, Server], ids: list[int], shapes: tuple[tuple[int, int], ...]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        speed.beside(servers, ids, shapes, self.sizes.decode, self.sizes.rounds, clock.in_time, rows)
        return rows

    def _gaps(self, clock: Clock) -> dict[str, Any]:
        batch, context, steps = self.sizes.profile
        prompts = passages(tokens(str(self.folders[DEFAULT_MODEL]), self.sizes.text), batch, context, context, seed=5)
        kinds = ["GPU"] if self.on_gpu else ["CPU"]
        found: dict[str, Any] = {}
        servers = self.fleet.running(("lean", "stock"))
        for number, (name, server) in enumerate(servers.items()):
            folder = self.fleet.folder / f"trace-{name}"
            seconds = max(clock.left() / (len(servers) - number), 5.0)
            file = trace.profile(server, prompts, steps, folder, kinds, seconds)
            found[name] = trace.gaps(trace.read(file)) if file else None
            if file and self.on_gpu and file.stat().st_size < TRACE_BYTES:
                shutil.copyfile(file, self.run.out / f"trace-{name}.json.gz")
        return found

    def _chat(self, clock: Clock, pair: Pair, ids: Callable[[], list[int]], load: Chat) -> list[dict[str, Any]]:
        return chat.compare(self._named(pair), chat.load(load, ids()), load, clock.in_time)

    def _some(self, *names: str) -> dict[str, Server]:
        """Those of the named that run."""
        if not (running := self.fleet.running(names)):
            raise RuntimeError(f"none of these servers runs: {', '.join(names)}")
        return running

    def _named(self, pair: Pair) -> dict[str, Server]:
        """Ours and stock of a pair."""
        running = self.fleet.running(pair)
        return {"lean": running[pair[0]], "stock": running[pair[1]]}
