"""``python -m bench.request_fuzz``: random requests against a real server, which must answer after each of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.common.command import Parser, run
from bench.common.server import serve
from bench.common.table import print_table, write_json
from bench.request_fuzz.bodies import BODIES, SERVED_NAME
from bench.request_fuzz.fuzz import fuzz

MANY = 100
"""Requests of a route, of which some should be answered."""
OF_OTHER_MODELS = ("/v1/embeddings", "/classify")


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "request_fuzz",
        __doc__,
        quick="150 requests; a minute",
        sizes={"requests": 150},
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routes", nargs="*", choices=list(BODIES), default=list(BODIES), metavar="ROUTE")
    parser.add_argument("--model-path", help="a small one is faster; by default the default model")
    parser.add_argument("--pool", type=int, default=4096, help="tokens of the pool")
    parser.add_argument("--failures", metavar="FILE", type=Path, help="requests answered with HTTP 500 go there")
    parser.add_argument("--log", metavar="FILE", type=Path, help="what the server prints goes there")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    flags = ["--max-total-tokens", str(args.pool), "--served-model-name", SERVED_NAME]
    if args.model_path:
        flags += ["--model-path", args.model_path, "--leankv-profile", "none"]
    with serve(*flags, log_file=args.log) as server:
        outcome = fuzz(server, args.requests, args.seed, args.routes)
        time.sleep(5)  # idle: the scheduler checks for leaks and audits the bytes
        server.flush()
        log, figures = server.log_text(), server.info()["leankv"]
    print_table(outcome.rows(), f"{sum(outcome.answers.values())} random requests; the server answered after each")
    totals = {
        "given up with HTTP 5xx": len(outcome.failures),
        "leaks": sum(log.count(word) for word in ("leak detected", "[pool-bytes]")),
        "blocks after flush": figures["blocks_total"] - figures["blocks_free"],
    }
    print_table([totals], "In the end")
    write_json(args.json, [*outcome.rows(), totals])
    if args.failures:
        args.failures.write_text(json.dumps(outcome.failures, indent=1) + "\n")
    if unmet := [route for route in outcome.never_answered(MANY) if route not in OF_OTHER_MODELS]:
        sys.exit(f"None of {MANY} requests and more was answered by {', '.join(unmet)}: bodies for it lack something.")
    if any(totals.values()):
        sys.exit("The server did not hold.")


if __name__ == "__main__":
    run(main)
