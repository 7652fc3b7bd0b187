"""The engine in-process, and that the evaluation's packed runner computes what it serves, decode steps that commit
pages too.

In float32, where two programs for one model differ by 1e-6 and not by what a random model makes of 16-bit roundings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.quality.decoding import Job, Question, answer
from bench.quality.systems import System, cache_of
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.offline.packed import PackedModel
from tests.e2e.prompts import tiny_passages

CONFIG = LeanKVConfig(alpha_high=1.5, alpha_low=0.4)
OURS = System("ours", CONFIG, CONFIG.alphas)
NEW = 48
SCRIPT = """
import json, sys
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.engine import engine
if __name__ == "__main__":
    model, config, prompts, new, out = sys.argv[1:]
    e = engine(model, LeanKVConfig.from_json(config), max_total_tokens=8192, dtype="float32", chunked_prefill_size=256)
    prompts, sampling = json.loads(prompts), {"max_new_tokens": int(new), "temperature": 0, "ignore_eos": True}
    answers = e.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True)
    told = {"pairs": [[pair[:2] for pair in a["meta_info"]["output_token_logprobs"]] for a in answers]}
    told["kv"] = e.generate(input_ids=prompts[0], sampling_params=sampling, leankv={"profile": "small"})["meta_info"]
    told["state"] = e.get_server_info()["internal_states"][0]["leankv"]
    open(out, "w").write(json.dumps(told))
    e.shutdown()
"""


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    found = tiny_passages(3, 200, 480, seed=2)
    found[0] += found[1][:40]  # 240 tokens: it crosses a page's end while it decodes
    return found


@pytest.fixture(scope="module")
def told(tiny: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine answered, and said about the last request and itself."""
    folder = tmp_path_factory.mktemp("engine")
    script, answers = folder / "run.py", folder / "answers.json"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tiny), CONFIG.to_json(), json.dumps(prompts), str(NEW), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert answers.exists(), done.stderr[-2000:]
    found: dict[str, Any] = json.loads(answers.read_text())
    return found


@pytest.fixture(scope="module")
def model(tiny: Path) -> PackedModel:
    packed = PackedModel(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), "tiny")
    packed.model.generation_config.eos_token_id = None
    return packed


def test_it_compresses_as_it_was_told(told: dict[str, Any]) -> None:
    assert told["kv"]["leankv"]["profile"] == "small"
    assert "tiers k8v4,k4v2," in told["state"]["config"]


def test_its_log_probabilities_are_the_packed_runners(
    model: PackedModel, prompts: list[list[int]], told: dict[str, Any]
) -> None:
    assert _worst(model, OURS, prompts, told["pairs"]) < 0.05
    # What the compression changes is far more.
    assert _worst(model, None, prompts, told["pairs"]) > 0.5


def test_its_answers_are_the_evaluations(model: PackedModel, prompts: list[list[int]], told: dict[str, Any]) -> None:
    """A context and a question behind it, in one batch with others, are what the engine had as one prompt."""
    jobs = [Job(prompt[:150], [Question(prompt[150:], NEW)]) for prompt in prompts]
    done = {one.job: one.tokens[0] for one in answer(model, partial(cache_of, model, OURS, 128), jobs, 3, 4096)}
    assert [done[i] for i in range(len(jobs))] == [[token for _, token in pairs] for pairs in told["pairs"]]


def _worst(
    model: PackedModel, system: System | None, prompts: list[list[int]], served: list[list[tuple[float, int]]]
) -> float:
    """The furthest that log-probabilities of the served tokens are from those of one prefill."""
    worst = 0.0
    for prompt, pairs in zip(prompts, served, strict=True):
        told, out = torch.tensor([p for p, _ in pairs]), torch.tensor([token for _, token in pairs])
        ids = prompt + out.tolist()
        cache = cache_of(model, system, 128, 1, len(ids))
        hidden = model.prefill(cache, [(cache.new(len(ids)), ids)])[0]
        mine = model.logits(hidden[len(prompt) - 1 : -1]).log_softmax(-1).gather(1, out[:, None])[:, 0]
        worst = max(worst, float((mine - told).abs().max()))
    return worst
