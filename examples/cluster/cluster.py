"""Several servers on one Mooncake Store behind a router, on this machine: ``python examples/cluster/cluster.py``.

On several machines the same commands run one on each; docs/offload.md has them. Needs the packages
mooncake-transfer-engine-non-cuda (and Debian's libibverbs1 and librdmacm1) and sglang-router. What follows ``--`` goes
to every server.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from leankv_sglang.processes import free_port, stop, tied

BIN = Path(sys.executable).parent


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[None]:
    """A command for the duration of the block; it ends with it, however that ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=tied()
        )
    try:
        yield
    finally:
        stop(process)


def wait_for(url: str, seconds: float = 240) -> None:
    """Return once there is an answer.

    Raises:
        TimeoutError: where there is none in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"{url} does not answer")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--port", type=int, default=30000, help="of the router")
    parser.add_argument("--policy", default="cache_aware", help="of the router")
    parser.add_argument("--store-size", default="1GiB", help="that each server gives the store of its memory")
    parser.add_argument("--logs", type=Path, default=Path("cluster-logs"), help="folder")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of every server")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        port = free_port()
        master = [str(BIN / "mooncake_master"), "-rpc_port", str(port), "-metrics_port", str(free_port())]
        stack.enter_context(running(master, args.logs / "master.log"))
        urls = []
        for i in range(args.servers):
            urls.append(f"http://127.0.0.1:{(own := free_port())}")
            store = ["--leankv-store", f"mooncake://127.0.0.1:{port}", "--leankv-store-size", args.store_size]
            server = [sys.executable, "-m", "leankv_sglang.launch_server", "--port", str(own), *store, *args.flags]
            stack.enter_context(running(server, args.logs / f"server-{i}.log"))
        for url in urls:
            wait_for(f"{url}/health_generate")
            print("a server is ready:", url, flush=True)
        router = [
            sys.executable,
            "-m",
            "sglang_router.launch_router",
            "--port",
            str(args.port),
            "--policy",
            args.policy,
        ]
        router += ["--prometheus-port", str(free_port()), "--worker-urls", *urls]
        stack.enter_context(running(router, args.logs / "router.log"))
        wait_for(f"http://127.0.0.1:{args.port}/health")
        print(f"the router is ready: http://127.0.0.1:{args.port} (Ctrl-C ends all)", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ending")


if __name__ == "__main__":
    main()
