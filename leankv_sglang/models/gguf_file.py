"""A GGUF file opened for conversion: its metadata by key, its tensors by name, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError
from .gguf_header import check_header

if TYPE_CHECKING:
    from gguf import ReaderTensor

ARCHITECTURES = ("llama", "qwen2")


class GGUFFile:
    """One GGUF file of a supported architecture, memory-mapped.

    Attributes:
        path: the file.
        architecture: one of `ARCHITECTURES`.
        tensors: name -> gguf's ReaderTensor, whose `data` (rows first) is a view of the file.

    Raises:
        ModelError: the file is missing, damaged, one part of several, of foreign byte order or of
            another architecture, or the `gguf` package is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as handle:
                magic = handle.read(4)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        if magic != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file.")
        check_header(path)
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ModelError("Reading GGUF files needs the package `gguf`: run `pip install gguf`.") from None
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # gguf has no exception of its own: damage shows as almost any
            raise ModelError(f"{path} is damaged or cut short ({error}).") from None
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        if self.get("split.count", 1) not in (0, 1):
            raise ModelError(f"{path} is one part of a split model: merge the parts with `llama-gguf-split --merge`.")
        self.architecture = str(self.get("general.architecture", ""))
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"{path} holds a model of architecture {self.architecture!r}; "
                f"only {' and '.join(ARCHITECTURES)} can be converted."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the metadata value under `key` as a plain Python value, or `default`."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def arch(self, key: str, default: Any = None) -> Any:
        """Returns the metadata value under `<architecture>.<key>`, or `default`."""
        return self.get(f"{self.architecture}.{key}", default)

    def arch_int(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of at least 0 under `<architecture>.<key>`; a per-layer list must agree on one.

        Raises:
            ModelError: it is missing without a default, no such number, or differs between layers.
        """
        value = self.arch(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelError(f"{self.path} varies {key} from layer to layer, which cannot be converted.")
            value = value[0]
        if value is None:
            raise ModelError(f"{self.path} does not state {self.architecture}.{key}.")
        if type(value) is not int or value < 0:
            raise ModelError(f"{self.path} states {self.architecture}.{key} as something else than a whole number.")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, rows first as in torch.

        Raises:
            ModelError: there is no such tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"{self.path} lacks the tensor {name}.")
        return tuple(int(n) for n in reversed(self.tensors[name].shape))
