"""A pack: files in one stream of bytes, cut into parts that may travel one by one, and an index of what lies where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INDEX = "pack.json"
PART_BYTES = 60 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file of the stream.

    Attributes:
        name: what it is called once unpacked.
        begin: its first byte in the stream.
        size: bytes.
        sha256: of its contents.
    """

    name: str
    begin: int
    size: int
    sha256: str


def part_path(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"part-{number:02d}"


def write_pack(files: Sequence[Path], folder: Path, about: dict[str, str], part_bytes: int = PART_BYTES) -> list[Path]:
    """Write files, the most needed first, as parts and an index; returns the parts.

    Args:
        files: their names have to differ.
        folder: older parts in it are removed.
        about: goes into the index.
        part_bytes: of a part at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*"):
        old.unlink()
    members, written = [], 0
    for file in files:
        digest, begin = hashlib.sha256(), written
        for chunk in _chunks(file):
            digest.update(chunk)
            while chunk:
                number, inside = divmod(written, part_bytes)
                piece, chunk = chunk[: part_bytes - inside], chunk[part_bytes - inside :]
                with part_path(folder, number).open("ab") as out:
                    out.write(piece)
                written += len(piece)
        members.append(Member(file.name, begin, written - begin, digest.hexdigest()))
    index = {"part_bytes": part_bytes, "members": [asdict(member) for member in members], "about": about}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return [part_path(folder, number) for number in range(-(-written // part_bytes))]


class Pack:
    """A pack in a folder, of which parts may be missing.

    Raises:
        FileNotFoundError: without an index.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        self.folder, self.part_bytes = folder, int(index["part_bytes"])
        self.members = [Member(**member) for member in index["members"]]
        self.about: dict[str, str] = index["about"]

    def missing(self, member: Member) -> list[int]:
        """The numbers of the parts that it still needs."""
        last = member.begin + max(member.size - 1, 0)
        numbers = range(member.begin // self.part_bytes, last // self.part_bytes + 1)
        return [number for number in numbers if not part_path(self.folder, number).exists()]

    def extract(self, member: Member, target: Path) -> None:
        """Write a member whose parts are all here.

        Raises:
            ValueError: where its bytes are not those that were packed.
        """
        digest, left, at = hashlib.sha256(), member.size, member.begin
        with target.open("wb") as out:
            while left:
                number, inside = divmod(at, self.part_bytes)
                with part_path(self.folder, number).open("rb") as part:
                    part.seek(inside)
                    piece = part.read(min(left, self.part_bytes - inside))
                if not piece:
                    raise ValueError(f"part {number} of the pack is shorter than it should be: carry it again")
                digest.update(piece)
                out.write(piece)
                left, at = left - len(piece), at + len(piece)
        if digest.hexdigest() != member.sha256:
            raise ValueError(f"{member.name} is not what was packed: carry the parts of one pack, all of them anew")


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK):
            yield chunk
