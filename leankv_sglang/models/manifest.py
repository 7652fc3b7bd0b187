"""The manifest of a converted folder: what it was made from, by which converter, and what it holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST_NAME = "leankv_model.json"


@dataclass(frozen=True)
class Manifest:
    """What `leankv_model.json` says about the folder it lies in."""

    source_name: str  # file name of the GGUF
    source_sha256: str
    source_bytes: int
    converter_version: int
    files: dict[str, int]  # file name -> bytes, without the manifest itself

    @classmethod
    def describe(
        cls, folder: Path, *, source_name: str, source_sha256: str, source_bytes: int, converter_version: int
    ) -> Manifest:
        """Returns a manifest of the files that lie in `folder` now."""
        files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != MANIFEST_NAME}
        return cls(source_name, source_sha256, source_bytes, converter_version, files)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Returns the manifest in `folder`, or None when it is missing or cannot be understood."""
        try:
            found = cls(**json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found.files, dict) else None

    def write(self, folder: Path) -> None:
        """Writes the manifest into `folder`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")

    def holds(self, folder: Path) -> bool:
        """Tells whether every listed file is in `folder` with the size it had."""
        try:
            return all((folder / name).stat().st_size == size for name, size in self.files.items())
        except OSError:
            return False


def is_current(folder: Path, *, source_sha256: str, converter_version: int) -> bool:
    """Tells whether `folder` already holds, whole, what this converter makes of that source."""
    manifest = Manifest.read(folder)
    return (
        manifest is not None
        and manifest.source_sha256 == source_sha256
        and manifest.converter_version == converter_version
        and manifest.holds(folder)
    )
