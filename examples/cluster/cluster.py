"""Several servers on one Mooncake Store behind a router, on this machine: ``python examples/cluster/cluster.py``.

On several machines the same commands run one on each; docs/offload.md has them. Needs the packages
mooncake-transfer-engine-non-cuda (and Debian's libibverbs1 and librdmacm1) and sglang-router. What follows ``--`` goes
to every server.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from leankv_sglang.processes import Process, free_port, start, stop, wait_until_ready

BIN = Path(sys.executable).parent
READY_SECONDS = 240.0


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[Process]:
    """A command for the duration of the block; it ends with it, however that ends."""
    with log.open("wb") as output:
        process = start(command, output)
    try:
        yield process
    finally:
        stop(process)


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
        urls, servers = [], []
        for i in range(args.servers):
            urls.append(f"http://127.0.0.1:{(own := free_port())}")
            store = ["--leankv-store", f"mooncake://127.0.0.1:{port}", "--leankv-store-size", args.store_size]
            server = [sys.executable, "-m", "leankv_sglang.launch_server", "--port", str(own), *store, *args.flags]
            servers.append(stack.enter_context(running(server, args.logs / f"server-{i}.log")))
        for url, process in zip(urls, servers, strict=True):
            wait_until_ready(url, process, READY_SECONDS, url)
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
        process = stack.enter_context(running(router, args.logs / "router.log"))
        wait_until_ready(f"http://127.0.0.1:{args.port}", process, READY_SECONDS, "the router")
        print(f"the router is ready: http://127.0.0.1:{args.port} (Ctrl-C ends all)", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ending")


if __name__ == "__main__":
    main()
