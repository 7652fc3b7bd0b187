"""From GGUF tensors to model.safetensors in bf16, streamed so that memory holds one slice at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ModelShape
from .errors import ModelError
from .gguf_file import GGUFFile

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor
    from numpy.typing import NDArray

SLICE_ELEMENTS = 1 << 24
_EMBED, _OUTPUT = "token_embd.weight", "output.weight"
_NOT_WEIGHTS = {"rope_freqs.weight"}  # goes into config.json
# Two quantizations of one matrix differ by 0.04 (Q5_0) to 0.08 (Q4_K) of its norm, two matrices by 1 and more.
_SAME_MATRIX = 0.12
_SAMPLED_ROWS = 1024


@dataclass(frozen=True)
class Target:
    """One tensor of the output: its name and shape, the GGUF tensor it comes from and the order of its rows."""

    name: str
    source: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0  # heads whose rows llama.cpp interleaved for its rope; 0: none


def plan_weights(file: GGUFFile, shape: ModelShape) -> tuple[list[Target], bool]:
    """Maps every tensor of `file` to its Hugging Face name.

    Returns:
        The tensors to write, in order, and whether the output projection is tied to the embedding:
        it is when `output.weight` is absent, equal to `token_embd.weight`, or the same matrix in another
        quantization. In the last case the finer of the two is kept.

    Raises:
        ModelError: a tensor is missing, misshapen or not part of the architecture.
    """
    embedding, tied = _choose_embedding(file)
    targets = [Target("model.embed_tokens.weight", embedding, (shape.vocab, shape.hidden))]
    for i in range(shape.layers):
        targets += _layer_targets(i, shape, file.architecture)
    targets.append(Target("model.norm.weight", "output_norm.weight", (shape.hidden,)))
    if not tied:
        targets.append(Target("lm_head.weight", _OUTPUT, (shape.vocab, shape.hidden)))

    for target in targets:
        found = file.shape(target.source)
        if found != target.shape:
            raise ModelError(f"{file.path} has {target.source} of shape {found} where {target.shape} was expected.")
    known = {target.source for target in targets} | {_EMBED, _OUTPUT} | _NOT_WEIGHTS
    if extra := sorted(set(file.tensors) - known):
        raise ModelError(f"{file.path} has a tensor {extra[0]}, which plain {file.architecture} models do not have.")
    return targets, tied


def _layer_targets(i: int, shape: ModelShape, architecture: str) -> Iterator[Target]:
    here, there = f"model.layers.{i}.", f"blk.{i}."
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    llama = architecture == "llama"
    yield Target(here + "input_layernorm.weight", there + "attn_norm.weight", (hidden,))
    for letter, rows, heads in (("q", queries, shape.query_heads), ("k", keys, shape.kv_heads), ("v", keys, 0)):
        name, source = f"{here}self_attn.{letter}_proj.", f"{there}attn_{letter}."
        yield Target(name + "weight", source + "weight", (rows, hidden), heads if llama else 0)
        if not llama:
            yield Target(name + "bias", source + "bias", (rows,))
    yield Target(here + "self_attn.o_proj.weight", there + "attn_output.weight", (hidden, queries))
    yield Target(here + "post_attention_layernorm.weight", there + "ffn_norm.weight", (hidden,))
    yield Target(here + "mlp.gate_proj.weight", there + "ffn_gate.weight", (inner, hidden))
    yield Target(here + "mlp.up_proj.weight", there + "ffn_up.weight", (inner, hidden))
    yield Target(here + "mlp.down_proj.weight", there + "ffn_down.weight", (hidden, inner))


def _choose_embedding(file: GGUFFile) -> tuple[str, bool]:
    """Returns the tensor to use as the embedding, and whether it serves as the output projection too."""
    import numpy as np

    if _OUTPUT not in file.tensors or file.shape(_EMBED) != file.shape(_OUTPUT):
        return _EMBED, _OUTPUT not in file.tensors
    embedding, output = file.tensors[_EMBED], file.tensors[_OUTPUT]
    if embedding.tensor_type == output.tensor_type:
        return _EMBED, bool(np.array_equal(embedding.data, output.data))
    rows = np.unique(np.linspace(0, len(embedding.data) - 1, _SAMPLED_ROWS, dtype=np.int64))
    a, b = _dequantize(embedding, rows), _dequantize(output, rows)
    same = float(np.linalg.norm(a - b)) <= _SAME_MATRIX * float(np.linalg.norm(b))
    return (_OUTPUT if same and output.n_bytes > embedding.n_bytes else _EMBED), same


def write_safetensors(file: GGUFFile, targets: list[Target], path: Path, *, quiet: bool = False) -> None:
    """Writes `targets`, dequantized to bf16, into the safetensors file `path`.

    The format is written by hand because the library wants all tensors in memory at once. A progress
    bar over the tensors is shown on stderr when that is a terminal, unless `quiet`.

    Raises:
        ModelError: a tensor has a type that `gguf` cannot dequantize.
    """
    import torch
    from tqdm import tqdm

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for target in targets:
        begin, end = end, end + 2 * _count(target.shape)
        header[target.name] = {"dtype": "BF16", "shape": list(target.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for target in tqdm(targets, desc="converting", unit="tensor", disable=True if quiet else None):
            for rows in _row_slices(target):
                values = torch.from_numpy(_dequantize(file.tensors[target.source], rows))
                out.write(values.to(torch.bfloat16).view(torch.int16).numpy().data)


def _row_slices(target: Target) -> Iterator[NDArray[np.int64]]:
    """Yields the source rows of `target` in its own order, a bounded number of elements at a time."""
    import numpy as np

    rows = np.arange(target.shape[0])
    if target.interleaved_heads:
        # llama.cpp stores rotary pairs side by side; Hugging Face keeps the two halves of a head apart.
        half = target.shape[0] // target.interleaved_heads // 2
        rows = rows.reshape(target.interleaved_heads, half, 2).swapaxes(1, 2).reshape(-1)
    step = max(1, SLICE_ELEMENTS // _count(target.shape[1:]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _dequantize(tensor: ReaderTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the given rows of `tensor` as contiguous float32; blocks never span rows."""
    import numpy as np
    from gguf import dequantize

    try:
        return np.ascontiguousarray(dequantize(tensor.data[rows], tensor.tensor_type), dtype=np.float32)
    except NotImplementedError:
        raise ModelError(f"{tensor.name} is stored as {tensor.tensor_type.name}, which cannot be converted.") from None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
