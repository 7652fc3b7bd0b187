"""The default model as a GGUF file whose weights are not quantized, for engines that read nothing else."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from leankv_sglang.models.catalog import DEFAULT_MODEL, lookup
from leankv_sglang.models.fetch import fetch_gguf


def plain_gguf() -> Path:
    """The file, kept in the environment; made at the first call from the one that the models come from.

    Quantized weights would be multiplied with quantized activations, and what that rounds off would count as the
    cache's loss; 16 bits hold the weights to within a rounding of their own.
    """
    target = Path(sys.prefix) / "share" / f"{DEFAULT_MODEL}.F16.gguf"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            source = fetch_gguf(lookup(DEFAULT_MODEL), Path(work))
            fresh = Path(work) / "plain.gguf"
            _dequantize(source, fresh)
            shutil.move(fresh, target)
    return target


def _dequantize(source: Path, target: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    architecture: Any = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        matrix = values.ndim > 1
        kind = GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, values.astype(np.float16 if matrix else np.float32), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
