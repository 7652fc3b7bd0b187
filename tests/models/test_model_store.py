"""The cache: reuse, atomicity, locking, and what `resolve_model_path` makes of its argument."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.models import DEFAULT_MODEL, ModelError, convert_gguf, ensure_model, home, resolve_model_path, store
from leankv_sglang.models.catalog import CATALOG
from leankv_sglang.models.manifest import MANIFEST_NAME, Manifest


@pytest.fixture
def plain_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the tokenizer step, which takes seconds to import, by one small file."""
    monkeypatch.setattr(
        "leankv_sglang.models.convert.write_tokenizer", lambda file, folder: (folder / "tokenizer.json").touch()
    )


@pytest.fixture
def gguf(make_gguf: Callable[..., Any], plain_tokenizer: None, cache_home: Path) -> Path:
    return make_gguf()[0]


@pytest.fixture
def fetches(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the default model a tiny one; the list returned counts its downloads."""
    content = gguf.read_bytes()
    entry = replace(CATALOG[DEFAULT_MODEL], gguf_bytes=len(content), gguf_sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(CATALOG, DEFAULT_MODEL, entry)
    calls: list[str] = []

    def fetch(model: Any, folder: Path, *, quiet: bool = False) -> Any:
        calls.append(model.name)
        return Path(shutil.copy(gguf, folder / "fetched.gguf"))

    monkeypatch.setattr(store, "fetch_gguf", fetch)
    return calls


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert home() == tmp_path / "a"
    monkeypatch.delenv("LEANKV_HOME")
    assert home() == tmp_path / "b" / "leankv-sglang"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert home() == Path.home() / ".cache" / "leankv-sglang"


def test_manifest_describes_the_folder(gguf: Path, cache_home: Path) -> None:
    folder = convert_gguf(gguf, quiet=True)
    sha256 = hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert folder == cache_home / "models" / f"tiny-{sha256[:12]}"
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert (manifest.source_name, manifest.source_sha256) == ("tiny.gguf", sha256)
    assert manifest.source_bytes == gguf.stat().st_size
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert set(manifest.files) == names
    assert everything_under(folder) == names | {MANIFEST_NAME}


def test_a_second_call_does_nothing(fetches: list[str]) -> None:
    folder = ensure_model(quiet=True)
    before = (folder / MANIFEST_NAME).stat()
    assert ensure_model(DEFAULT_MODEL, quiet=True) == folder
    assert (folder / MANIFEST_NAME).stat() == before
    assert fetches == [DEFAULT_MODEL]
    assert everything_under(home() / "tmp") == set()


@pytest.mark.parametrize("damage", ["missing", "size", "version", "source", "manifest"])
def test_a_damaged_or_outdated_folder_is_made_anew(fetches: list[str], damage: str) -> None:
    folder = ensure_model(quiet=True)
    good = everything_under(folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    if damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "size":
        (folder / "model.safetensors").write_bytes(b"short")
    elif damage == "version":
        manifest["converter_version"] -= 1
    elif damage == "source":
        manifest["source_sha256"] = "0" * 64
    (folder / MANIFEST_NAME).write_text("{" if damage == "manifest" else json.dumps(manifest))
    (folder / "stray").touch()
    ensure_model(quiet=True)
    assert len(fetches) == 2
    assert everything_under(folder) == good


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_no_half_folder(
    gguf: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def crash(file: Any, folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        raise error

    monkeypatch.setattr("leankv_sglang.models.convert.write_tokenizer", crash)
    with pytest.raises(error):
        convert_gguf(gguf, quiet=True)
    assert everything_under(cache_home / "models") == set()


def test_a_crash_keeps_the_folder_that_was_there(fetches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_model(quiet=True)
    good = everything_under(folder)
    monkeypatch.setattr(store, "CONVERTER_VERSION", -1)
    monkeypatch.setattr("leankv_sglang.models.convert.Manifest.write", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ensure_model(quiet=True)
    assert everything_under(folder) == good
    assert everything_under(folder.parent) == {folder.name} | {f"{folder.name}/{name}" for name in good}


def test_what_a_killed_process_left_is_cleared_away(gguf: Path, cache_home: Path) -> None:
    folder = convert_gguf(gguf, quiet=True)
    shutil.rmtree(folder)
    stale = folder.parent / f".{folder.name}.tmp-1"
    stale.mkdir()
    (stale / "model.safetensors").touch()
    assert convert_gguf(gguf, quiet=True) == folder
    assert not stale.exists()


def test_calls_made_together_convert_once(fetches: list[str]) -> None:
    threads = [threading.Thread(target=ensure_model, kwargs={"quiet": True}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetches == [DEFAULT_MODEL]


def test_out_is_reused_and_replaced_but_never_a_foreign_folder(
    gguf: Path, make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convert_gguf(gguf, out, quiet=True) == out
    convert_gguf(make_gguf("other.gguf", output="unrelated")[0], out, quiet=True)
    manifest = Manifest.read(out)
    assert manifest is not None
    assert manifest.source_name == "other.gguf"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ModelError, match="choose another folder"):
        convert_gguf(gguf, tmp_path / "mine", quiet=True)
    assert everything_under(tmp_path / "mine") == {"thesis.txt"}


def test_an_unwritable_target_is_one_sentence(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot be written: .*\.$"):
        convert_gguf(gguf, tmp_path / "file" / "out", quiet=True)


def test_resolve_model_path(gguf: Path, fetches: list[str], tmp_path: Path) -> None:
    default = str(ensure_model(quiet=True))
    assert resolve_model_path(None) == default
    assert resolve_model_path(DEFAULT_MODEL) == default
    assert resolve_model_path(str(gguf)) == str(convert_gguf(gguf, quiet=True))
    for other in (str(tmp_path), "some-org/some-model", "./relative", "Qwen2.5"):
        assert resolve_model_path(other) == other
    with pytest.raises(ModelError, match="No such file"):
        resolve_model_path(str(tmp_path / "absent.gguf"))
    with pytest.raises(ModelError, match="no model called 'absent'"):
        ensure_model("absent")


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, leankv_sglang; before = set(sys.modules); import leankv_sglang.models.__main__;"
        "print({'torch', 'transformers', 'gguf', 'numpy', 'tqdm', 'sglang'} & (set(sys.modules) - before))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
