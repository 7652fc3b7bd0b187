"""The evaluation's packed runner computes what the engine serves, over decode steps that commit pages too.

In float32, where two programs for one model differ by 1e-6 and not by what a random model makes of 16-bit roundings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.quality.decoding import Job, Question, answer
from bench.quality.systems import System, cache_of
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.offline.packed import PackedModel
from tests.e2e.prompts import passages
from tests.tiny_folder import make_tiny_model

CONFIG = LeanKVConfig(alpha_high=1.5, alpha_low=0.4)
NEW = 48
SCRIPT = """
import json, sys
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.engine import engine
if __name__ == "__main__":
    model, config, prompts, new, out = sys.argv[1:]
    e = engine(model, LeanKVConfig.from_json(config), max_total_tokens=8192, dtype="float32", chunked_prefill_size=256)
    sampling = {"max_new_tokens": int(new), "temperature": 0, "ignore_eos": True}
    answers = e.generate(input_ids=json.loads(prompts), sampling_params=sampling, return_logprob=True)
    pairs = [[pair[:2] for pair in a["meta_info"]["output_token_logprobs"]] for a in answers]
    open(out, "w").write(json.dumps(pairs))
    e.shutdown()
"""


def test_log_probabilities_are_the_engines(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    prompts = passages(3, 200, 480, seed=2)
    prompts[0] += prompts[1][:40]  # 240 tokens: it crosses a page's end while it decodes
    script, answers = tmp_path / "run.py", tmp_path / "answers.json"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), CONFIG.to_json(), json.dumps(prompts), str(NEW), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert answers.exists(), done.stderr[-2000:]
    model = PackedModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), "tiny")
    ours = System("ours", CONFIG, CONFIG.alphas)
    served = json.loads(answers.read_text())
    assert _worst(model, ours, prompts, served) < 0.05
    # What the compression changes is far more.
    assert _worst(model, None, prompts, served) > 0.5
    model.model.generation_config.eos_token_id = None
    # A context and a question behind it, in one batch with others, are what the engine had as one prompt.
    jobs = [Job(prompt[:150], [Question(prompt[150:], NEW)]) for prompt in prompts]
    done = {one.job: one.tokens[0] for one in answer(model, partial(cache_of, model, ours, 128), jobs, 3, 4096)}
    assert [done[i] for i in range(len(jobs))] == [[token for _, token in pairs] for pairs in served]


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
