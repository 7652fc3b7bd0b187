"""The default model itself, fetched on first use."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leankv_sglang.models import CATALOG, DEFAULT_MODEL, ensure_model


def test_default_model_speaks() -> None:
    folder = ensure_model()
    facts = CATALOG[DEFAULT_MODEL]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (facts.layers, facts.query_heads)
    assert (config.num_key_value_heads, config.head_dim) == (facts.kv_heads, facts.head_dim)
    assert config.max_position_embeddings == tokenizer.model_max_length == facts.context

    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
    assert text.startswith("The capital of France is Paris")

    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    chat = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**chat, max_new_tokens=20, do_sample=False)[0, chat["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] in model.generation_config.eos_token_id
