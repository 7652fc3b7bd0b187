"""Makes sglang and LeanKV importable on a machine that may have neither; the standard library alone.

What is installed is used as it is. What is not comes from the pack, into a folder for ``PYTHONPATH``, and LeanKV's
packages from the checkout, with an entry-point file, since SGLang finds its plugins by that.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.gpu.server.archive import INDEX, Member, Pack
from bench.gpu.server.pack import ROOT, SITE

PACKAGES = {"leankv_sglang": "leankv_sglang", "kernels": "leankv_kernels", "patches": "leankv_patches"}
"""Folders of the checkout, and what they are imported as."""
MODEL_WHEEL = ".whl"
_DONE = ".unpacked"


class SetupError(RuntimeError):
    """One sentence saying what the machine lacks."""


def installed(name: str) -> str | None:
    """The version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def set_up(pack_folder: Path, site: Path, has: Callable[[str], str | None] = installed) -> dict[str, Any]:
    """Fill ``site`` with what is not installed; what was found and done.

    Args:
        pack_folder: of the pack, needed only where sglang is not installed.
        site: the folder for ``PYTHONPATH``, kept from call to call.
        has: tells an installed distribution's version.

    Raises:
        SetupError: sglang is not installed, and its part of the pack is not here or is for another Python.
    """
    site.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {"sglang": has("sglang"), "from_pack": False, "from_checkout": False}
    if done["sglang"] is None:
        done |= {"sglang": _unpack_site(pack_folder, site), "from_pack": True}
    if has("leankv-sglang") is None:
        link_checkout(site)
        done["from_checkout"] = True
    return done


def environment(site: Path) -> dict[str, str]:
    """The variables that whoever imports from ``site`` needs, servers included."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1"}
    compiler = shutil.which("nvcc")
    if compiler and "CUDA_HOME" not in os.environ:
        found["CUDA_HOME"] = str(Path(compiler).resolve().parents[1])
    return found


def link_checkout(site: Path) -> None:
    """LeanKV's packages, of the checkout itself, and the file by which SGLang finds its plugins."""
    for folder, package in PACKAGES.items():
        link = site / package
        if link.is_symlink():
            link.unlink()
        link.symlink_to(ROOT / folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = site / f"leankv_sglang-{project['version']}.dist-info"
    about.mkdir(exist_ok=True)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (about / "METADATA").write_text(head)
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(groups))


def packed_models(pack_folder: Path) -> dict[str, list[Member]]:
    """The wheels of each model that a pack lists, in order; nothing without a pack."""
    found: dict[str, list[Member]] = {}
    if (pack_folder / INDEX).exists():
        for member in Pack(pack_folder).members:
            if member.name.endswith(MODEL_WHEEL):
                found.setdefault(member.name.removesuffix(MODEL_WHEEL).rpartition(".")[0], []).append(member)
    return found


def _unpack_site(pack_folder: Path, site: Path) -> str:
    """Unpack what replaces installed packages, unless that was done; the version of sglang in it."""
    if not (pack_folder / INDEX).exists():
        raise SetupError(
            f"sglang is not installed and there is no pack in {pack_folder}: bench/gpu/server.sh --pack makes one on a "
            "machine with a package index"
        )
    pack = Pack(pack_folder)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if pack.about["python"] != python:
        raise SetupError(
            f"the pack is for Python {pack.about['python']} and this is {python}: --pack --python {python}"
        )
    (member,) = (member for member in pack.members if member.name == SITE)
    mark = site / _DONE
    if not (mark.exists() and mark.read_text() == member.sha256):
        if missing := pack.missing(member):
            raise SetupError(f"part {missing[0]:02d} of the pack, which holds sglang, is not in {pack_folder}")
        whole = site / SITE
        pack.extract(member, whole)
        with tarfile.open(whole) as tar:
            tar.extractall(site, filter="data")
        whole.unlink()
        mark.write_text(member.sha256)
    return next(path.name.split("-")[1].removesuffix(".dist") for path in site.glob("sglang-*.dist-info"))
