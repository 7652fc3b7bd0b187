"""Physical bytes of a running server after mixed chat, beside what the record layout predicts.

``python -m bench.chat`` lets several clients talk over pasted passages, two turns each, until enough tokens went by.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import mt_bench, random_prompts
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json
from leankv_kernels import TIERS, RecordLayout
from leankv_kernels.layout import align_up

LAYERS, KV_HEADS, HEAD_DIM = 30, 3, 64


def _converse(server: Server, passage: list[int], turns: list[str], tokenizer: Any, new_tokens: int) -> int:
    """One conversation; returns the tokens it ran over."""
    messages: list[dict[str, str]] = []
    total = 0
    for i, turn in enumerate(turns):
        text = tokenizer.decode(passage) + "\n\n" + turn if i == 0 else turn
        messages.append({"role": "user", "content": text})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = server.generate(ids, new_tokens, temperature=0.7)
        messages.append({"role": "assistant", "content": answer.text})
        total += len(ids) - answer.cached + len(answer.tokens)
    return total


def predicted_bytes(tokens: int, page_size: int) -> int:
    """What records of the default tiers for so many tokens take by the layout, table entries included."""
    layout = RecordLayout(page_size, KV_HEADS, HEAD_DIM, TIERS["k8v4"], TIERS["k4v2"])
    payload = layout.header_bytes + KV_HEADS * page_size * sum(layout.token_bytes)
    return tokens // page_size * LAYERS * (align_up(payload, layout.block_bytes) + 4)


def chat(server: Server, wanted: int, clients: int, new_tokens: int) -> dict[str, Any]:
    """Talk until ``wanted`` tokens went by, then read the server's figures."""
    from transformers import AutoTokenizer

    from leankv_sglang.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model(quiet=True))
    passages = random_prompts(200, 150, 800, seed=11)
    questions = mt_bench()
    total = 0
    with ThreadPoolExecutor(clients) as pool, tqdm(total=wanted, unit="token") as bar:
        for start in range(0, len(passages), clients):
            jobs = [
                pool.submit(_converse, server, passages[i], questions[i % len(questions)], tokenizer, new_tokens)
                for i in range(start, min(start + clients, len(passages)))
            ]
            for job in jobs:
                total += job.result()
                bar.update(job.result())
            if total >= wanted:
                break
    figures = server.info()["leankv"]
    predicted = predicted_bytes(figures["tokens_held"], figures["page_size"])
    return {
        "tokens_processed": total,
        "tokens_held": figures["tokens_held"],
        "bytes": figures["bytes_total"],
        "bytes_predicted": predicted,
        "off": figures["bytes_total"] / predicted - 1,
        "ratio": figures["ratio"],
        "high": figures["share_high"],
        "low": figures["share_low"],
        "open_pages_bytes": figures["bytes_open_pages"],
    }


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "chat",
        __doc__,
        quick="4,000 tokens, 4 clients, 16 new tokens a turn; about a minute",
        sizes={"tokens": 4000, "clients": 4, "new_tokens": 16},
    )
    parser.add_argument("--tokens", type=int, default=20000, help="to go by, about")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48, help="per turn")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    with serve("--leankv-profile", "none") as server:
        row = chat(server, args.tokens, args.clients, args.new_tokens)
    print_table([row], "Mixed chat, SmolLM2, one pair of thresholds for all heads")
    write_json(args.json, [row])


if __name__ == "__main__":
    run(main)
