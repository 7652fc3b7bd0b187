"""Rooms of the packages and the imports between them: ``python .ci/rooms.py [CHECKOUT]``.

A room is a folder or a module directly in a package; an arrow says that one room imports from another. Floors count
from the rooms that import nothing.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGES = {"leankv_sglang": "leankv_sglang", "kernels": "leankv_kernels"}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages by its import name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one imports, anywhere in its text but under ``if TYPE_CHECKING``."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(inner) for outer in typing_only for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return found & set(known)


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Rooms that import each other, directly or over others."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for room in arrows[todo.pop()] - seen:
                seen.add(room)
                todo.append(room)
        return seen

    reached = {room: reach(room) for room in arrows}
    found = {frozenset(b for b in arrows if b in reached[a] and a in reached[b]) for a in arrows}
    return [set(group) for group in found if group]


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, arrows inside circles left out."""
    inside = {(a, b) for group in circles(arrows) for a in group for b in group}
    level: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in level:
            level[room] = 1 + max((of(b) for b in arrows[room] if (room, b) not in inside), default=-1)
        return level[room]

    for room in arrows:
        of(room)
    return level


def main(root: Path) -> None:
    """Print both packages."""
    known = modules(root)
    for package in PACKAGES.values():
        arrows: dict[str, set[str]] = {}
        for name, path in known.items():
            if name.startswith(package + "."):
                room = name.split(".")[1]
                others = {
                    other.split(".")[1] for other in imports(name, path, known) if other.startswith(package + ".")
                }
                arrows.setdefault(room, set()).update(others - {room})
        found, level = circles(arrows), floors(arrows)
        count, top = sum(len(others) for others in arrows.values()), max(level.values())
        print(f"\n{package}: {len(arrows)} rooms, {count} arrows, {top + 1} floors, {len(found)} circles")
        for group in found:
            print(f"  circle: {', '.join(sorted(group))}")
        for floor in range(top, -1, -1):
            for room in sorted(r for r in arrows if level[r] == floor):
                print(f"  {floor}  {room:16} -> {', '.join(sorted(arrows[room])) or '-'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]))
