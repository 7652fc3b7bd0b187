"""Small random models of Llama's architecture: in memory, in the packed runner, and in a folder to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from leankv_sglang.offline.packed import PackedModel

PAGE = 64
VOCABULARY = 512
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
"""Where the runner is tested: on a GPU too, where there is one."""


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens."""
    drawn = torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    ids: list[int] = drawn.tolist()
    return ids


def tiny_llama(vocabulary: int, layers: int, heads: int, gain: float) -> Any:
    """A Llama in float32, the same weights every time; 2 KV heads of 32."""
    from transformers import LlamaConfig

    return _drawn(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32 * heads,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            head_dim=32,
            initializer_range=gain,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def tiny_packed(vocabulary: int = VOCABULARY, gain: float = 0.2, device: str = "cpu") -> PackedModel:
    """3 layers, 6 query heads."""
    return PackedModel(tiny_llama(vocabulary, 3, 6, gain).to(device, torch.bfloat16), "tiny")


def tiny_folder(folder: Path, layers: int = 4, kv_heads: int = 2, query_heads: int = 4) -> Path:
    """A folder of a model with a tokenizer of its own; heads of 64, by default such that two ranks can share them."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64 * query_heads,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=8192,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    _drawn(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Bytes, and the pairs of them that are most frequent in ``tokenizer_text.md``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(Path(__file__).with_name("tokenizer_text.md"))], trainer)
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token=special[1], chat_template=template
    )


def _drawn(config: Any) -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()
