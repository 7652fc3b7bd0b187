"""Target: ``LoRARef.deterministic_id`` of sglang 0.5.23.

Reason: it names an adapter of ``--lora-paths`` by its name and path, and that name is all that tells its pages from
others'. Pages in a store outlive the server, so an adapter that was trained again in its folder would find those of
the one before. Here what lies in the folder is part of the name. An adapter of a hub keeps SGLang's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from leankv_patches import hook

TARGET = "sglang.srt.lora.lora_registry.LoRARef.deterministic_id"


def with_contents(lora_id: str, lora_name: str, lora_path: str) -> str:
    """Name an adapter by what ``deterministic_id`` gave and by the files of its folder, if it is one."""
    folder = Path(lora_path)
    if not folder.is_dir():
        return lora_id
    digest = hashlib.sha256(lora_id.encode())
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    # As long as SGLang's.
    return digest.hexdigest()[: len(lora_id)]


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, with_contents, "AFTER")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "names of adapters", ["lora_name", "lora_path"])
