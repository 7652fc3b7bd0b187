"""From the tokenizer inside a GGUF file to tokenizer files, mended where transformers reads too little of it."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from .errors import ModelError
from .gguf_file import GGUFFile

logger = logging.getLogger(__name__)

# llama.cpp's names of pre-tokenizers that cut at every digit and then split as GPT-2 does.
_DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_PLAIN_GPT2 = frozenset({"", "default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2"})
_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe"})


def write_tokenizer(file: GGUFFile, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template of `file` into `folder`.

    Beyond what transformers takes from a GGUF file this keeps its add-bos flag, the cutting of numbers
    into digits, the NFC normalization of Qwen2, whole-word lookup of Llama 3, and the context length.

    Raises:
        ModelError: the file has no tokenizer, or one that cannot be read or that exceeds the embedding.
    """
    if file.get("tokenizer.ggml.model") is None:
        raise ModelError(f"{file.path} has no tokenizer.")
    try:
        tokenizer = _load(file.path)
    except ImportError as error:
        raise ModelError(f"Reading a tokenizer needs the package `transformers` ({error}).") from None
    except Exception as error:  # transformers raises whatever its parser met first
        raise ModelError(f"The tokenizer in {file.path} cannot be read ({error}).") from None
    rows = file.shape("token_embd.weight")[0]
    if len(tokenizer) > rows:
        raise ModelError(f"{file.path} has {len(tokenizer)} tokens for an embedding of {rows} rows.")
    _mend(tokenizer, file)
    _try_chat_template(tokenizer, file.path)
    tokenizer.save_pretrained(folder)
    _clean_config(folder / "tokenizer_config.json")


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer

    # In a folder of its own, since AutoTokenizer also reads whatever tokenizer files lie beside the GGUF.
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / "model.gguf").symlink_to(path.resolve())
        return AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")


def _mend(tokenizer: Any, file: GGUFFile) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    sentencepiece = file.get("tokenizer.ggml.model") == "llama"
    kind = str(file.get("tokenizer.ggml.pre", ""))
    if sentencepiece:
        if file.get("tokenizer.ggml.add_space_prefix") is False:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            backend.decoder = decoders.Sequence(steps)
    elif kind in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    elif kind in _LLAMA3:
        backend.model.ignore_merges = True
    elif kind not in _PLAIN_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        logger.warning("%s splits text by rules named %r, unknown here: GPT-2's are used.", file.path.name, kind)
    tokenizer.add_bos_token = bool(file.get("tokenizer.ggml.add_bos_token", sentencepiece or kind in _LLAMA3))
    tokenizer.model_max_length = file.arch_int("context_length")


def _try_chat_template(tokenizer: Any, path: Path) -> None:
    if not tokenizer.chat_template:
        return
    messages = [{"role": "user", "content": "Hello"}]
    try:
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # any error the template's own code can raise
        logger.warning("The chat template in %s does not work: %s.", path.name, error)


def _clean_config(path: Path) -> None:
    """Leaves tokenizer.json the only authority: named classes rebuild parts of it when they load."""
    config = json.loads(path.read_text(encoding="utf-8"))
    dropped = ("backend", "is_local", "local_files_only")
    config = {key: value for key, value in config.items() if key not in dropped and value is not None}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
