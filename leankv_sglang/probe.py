"""``python -m leankv_sglang.probe``: how many tokens of a prompt a running server would find in its cache, and why."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from leankv_sglang.command import exit_code
from leankv_sglang.errors import LeanKVError
from leankv_sglang.table import print_table

DEFAULT_URL = "http://127.0.0.1:30000"
KEY_ENV = "LEANKV_API_KEY"
_TIMEOUT = 90.0


def ask(url: str, body: dict[str, Any], api_key: str | None = None) -> dict[str, Any]:
    """What a server answers to a probe.

    Args:
        url: of the server.
        body: as ``POST /leankv/probe`` takes it.
        api_key: the server's, if it has one.

    Raises:
        LeanKVError: where the server is not there, is none of ours, or refuses.
    """
    import requests

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = requests.post(f"{url.rstrip('/')}/leankv/probe", json=body, headers=headers, timeout=_TIMEOUT)
    except (requests.RequestException, ValueError) as error:
        raise LeanKVError(
            f"No server answers at {url} ({type(error).__name__}); give its address with --url."
        ) from None
    if answer.status_code == 401:
        raise LeanKVError(f"The server at {url} wants its API key; give it with --api-key, or in {KEY_ENV}.")
    if answer.status_code == 404:
        raise LeanKVError(f"The server at {url} has no probe; it was not started by leankv_sglang.launch_server.")
    try:
        found: dict[str, Any] = answer.json()
    except ValueError:
        raise LeanKVError(f"The server at {url} answers {answer.status_code} without JSON.") from None
    if not answer.ok:
        told = found.get("error")
        said = told.get("message") if isinstance(told, dict) else told
        raise LeanKVError(str(said or f"The server at {url} answers {answer.status_code}."))
    return found


def show(found: dict[str, Any]) -> None:
    """Print an answer: a sentence, and a table of what is where."""
    print(found["sentence"])
    places = {place: tokens for place, tokens in found["hit_from"].items() if tokens}
    rows = [{"where": place, "tokens": tokens} for place, tokens in places.items()]
    rows.append({"where": "to be computed", "tokens": found["to_compute"]["tokens"]})
    print_table(rows)
    for one in found.get("ranks", []):
        print(f"rank {one['rank']}: {one['hit_tokens']:,} tokens")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leankv_sglang.probe",
        description="How many tokens of a prompt a running server would find in its cache, where the hit ends and why. "
        "Nothing is generated, locked or counted as used.",
    )
    parser.add_argument("text", nargs="?", help="the prompt; left out, or -, it is read from standard input")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message, under the chat template")
    parser.add_argument("--accuracy", metavar="NAME", help="as a request names it in leankv.profile")
    parser.add_argument("--salt", metavar="SALT", help="the request's cache_salt")
    parser.add_argument("--api-key", metavar="KEY", help=f"of the server (default: {KEY_ENV} of the environment)")
    parser.add_argument("--json", action="store_true", help="print the answer as the server gives it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 after an error, 130 when interrupted."""
    args = _parser().parse_args(argv)

    def run() -> None:
        text = sys.stdin.read() if args.text in (None, "-") else args.text
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if args.chat else {"text": text}
        if args.accuracy:
            body["leankv"] = {"profile": args.accuracy}
        if args.salt:
            body["cache_salt"] = args.salt
        found = ask(args.url, body, args.api_key or os.environ.get(KEY_ENV))
        if args.json:
            print(json.dumps(found, indent=2))
        else:
            show(found)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
