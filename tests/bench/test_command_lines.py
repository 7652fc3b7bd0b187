"""Command lines of benches: what ``--quick`` does, where plots go, and how a stopped bench ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bench.common.command import OUT, Parser
from bench.common.plot import save_plot
from tests.processes import left_after, runs

ROOT = Path(__file__).parents[2]
MODULES = {
    **dict.fromkeys(("chat", "company", "cuda_budget", "heads", "hit_miss", "instruction_sets", "overhead"), ""),
    **dict.fromkeys(("live_page", "rows", "stress", "throughput"), ""),
    **dict.fromkeys(
        (
            "architectures",
            "capacity",
            "cuda_faults",
            "kernels",
            "launches",
            "offload",
            "request_fuzz",
            "serving",
        ),
        ".__main__",
    ),
    "quality": ".cli",
    "quality.rivals": ".__main__",
}
PLOTTED = {"heads", "kernels", "offload", "quality", "serving"}


def parser_of(name: str) -> Parser:
    """The flags of a bench."""
    found: Parser = import_module(f"bench.{name}{MODULES[name]}").command_line()
    return found


def test_all_benches_are_known_here() -> None:
    bench = ROOT / "bench"
    names = {path.stem for path in bench.glob("*.py")}
    names |= {".".join(path.parent.relative_to(bench).parts) for path in bench.rglob("__main__.py")}
    assert names - {"__init__", "data", "gpu.server"} == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_quick_is_smaller_and_says_how_long_it_takes(name: str) -> None:
    parser = parser_of(name)
    said = re.sub(r"\s+", " ", parser.format_help())
    assert f"python -m bench.{name}" in said
    assert re.search(r"--quick [^;]+; [\w ]*minutes?\b", said)
    usual, quick = vars(parser_of(name).parse_args([])), vars(parser.parse_args(["--quick"]))
    assert quick.keys() == usual.keys()
    changed = {key for key in usual if usual[key] != quick[key]}
    assert changed == {"quick", *parser.sizes}
    assert parser.sizes


def small() -> Parser:
    """One of a single size."""
    parser = Parser("small", None, quick="2; a minute", sizes={"count": 2}, plot=True)
    parser.add_argument("--count", type=int, default=9)
    return parser


def test_what_is_given_wins() -> None:
    for words in (["--quick", "--count", "5"], ["--count", "5", "--quick"], ["--count=5", "--quick"]):
        assert small().parse_args(words).count == 5
    assert small().parse_args(["--quick"]).count == 2
    assert small().parse_args([]).count == 9


def test_plots_go_to_a_folder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {name for name in MODULES if "plot" in vars(parser_of(name).parse_args([]))} == PLOTTED
    assert Path(small().parse_args([]).plot) == OUT / "small.png"
    assert small().parse_args(["--plot", "a.svg"]).plot == "a.svg"
    ignored = subprocess.run(["git", "check-ignore", "-q", str(OUT / "small.png")], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    file = tmp_path / "made" / "p.svg"
    save_plot(lambda path: bool(Path(path).write_text("drawn")), str(file))
    assert file.read_text() == "drawn"
    assert capsys.readouterr().out == f"Plot: {file}\n"
    save_plot(lambda path: False, str(file))
    assert capsys.readouterr().out.startswith("No plot: ")


BENCH = """
import sys
from concurrent.futures import ThreadPoolExecutor
from bench.common.command import run
from bench.common.processes import held, output_of
from leankv_sglang.processes import start_module

def server():
    with open("/dev/null", "wb") as output:
        process = start_module("http.server", ["0", "--bind", "127.0.0.1"], output, {})
    with held(process), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(process.wait)  # as a client's thread that waits for its answer
        print(process.pid, file=sys.stderr, flush=True)
        asked.result()
    raise RuntimeError("the server is gone")

def child():
    says = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    output_of([sys.executable, "-c", says], {})

run({"server": server, "child": child}[sys.argv[1]])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["server", "child"])
def test_a_stopped_bench_ends_with_what_it_started_and_one_line(what: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", BENCH, what]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr
        started = int(bench.stderr.readline())
        assert runs(started)
        bench.send_signal(number)
        assert bench.stderr.read() == "interrupted\n"
        assert bench.wait(30) == 130
    assert not left_after(5, [started])


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("return 1", 1, ""),
        ("return None", 0, ""),
        ("raise LeanKVError('Do that.')", 2, "error: Do that."),
        ("raise SystemExit('They differ.')", 1, "They differ."),
    ],
)
def test_how_benches_end_otherwise(body: str, code: int, line: str) -> None:
    text = (
        "from bench.common.command import run\nfrom leankv_sglang.errors import LeanKVError\n"
        f"def main():\n    {body}\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, line)
