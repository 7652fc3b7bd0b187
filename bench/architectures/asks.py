"""What every server is asked, and whether its answers agree with each other to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.common.data import drawn_prompts
from bench.common.server import Server

PAGE = 64
LENGTHS = (5, 63, 64, 65, 130, 200, 300, 700)
VOCABULARY, NEW_TOKENS, TURN_TOKENS = 512, 16, 40
TOP = 5
SECOND_TURN_OF = LENGTHS.index(300)


@dataclass(frozen=True)
class Answer:
    """One answer, with all of its numbers.

    Args:
        prompt: token ids.
        inputs: log-probabilities of the prompt's last tokens, as far as they were asked for.
        tokens: of the answer.
        logprobs: theirs.
        tops: the most likely tokens of each, with theirs.
        cached: how many of the prompt's tokens were.
    """

    prompt: list[int]
    inputs: list[float | None]
    tokens: list[int]
    logprobs: list[float | None]
    tops: list[Any]
    cached: int

    def same(self, other: Answer) -> bool:
        """Whether both are equal to the bit, as far as both were asked for the prompt's log-probabilities."""
        # The first of what is asked for has none.
        shared = min(len(self.inputs), len(other.inputs)) - 1
        tails = [one.inputs[len(one.inputs) - shared :] for one in (self, other)]
        return (
            None not in (*tails[0], *self.logprobs)
            and tails[0] == tails[1]
            and (self.tokens, self.logprobs, self.tops) == (other.tokens, other.logprobs, other.tops)
        )

    @property
    def whole(self) -> list[float | None]:
        """The log-probability of every token behind the first; for answers asked for all of them."""
        return [*self.inputs[1:], *self.logprobs]

    @property
    def sequence(self) -> list[int]:
        """The prompt and the answer."""
        return [*self.prompt, *self.tokens]


@dataclass
class Findings:
    """What a server said, and whether it contradicted itself; None where that was not asked.

    Args:
        misses: an answer for each prompt, alone on an empty cache, with all of the prompt's log-probabilities.
        hit_equals_miss: a prompt again, when its pages are there; False too where nothing was.
        hit_share: cached tokens of those that full pages before the last token hold.
        second_turn_equal: a prompt behind an answer, when both are there, against an empty cache.
        batch_equal: all prompts at once, first without their pages, then with them.
        lost: why there is no server, or no more.
        note: how it had to be started, where not like the others.
    """

    misses: list[Answer] = field(default_factory=list)
    hit_equals_miss: bool | None = None
    hit_share: float | None = None
    second_turn_equal: bool | None = None
    batch_equal: bool | None = None
    lost: str | None = None
    note: str = ""


def prompts() -> list[list[int]]:
    """Random token ids, for every length one."""
    return [
        [2 + token for token in drawn_prompts(1, length, length, VOCABULARY - 2, seed=length)[0]] for length in LENGTHS
    ]


def ask(server: Server, prompt: list[int], start: int = 0, new_tokens: int = NEW_TOKENS) -> Answer:
    """One greedy answer, with the prompt's log-probabilities from ``start`` on."""
    return ask_all(server, [prompt], [start], new_tokens)[0]


def ask_all(
    server: Server, asked: Sequence[list[int]], starts: Sequence[int], new_tokens: int = NEW_TOKENS
) -> list[Answer]:
    """Greedy answers to several prompts in one request."""
    body = {
        "input_ids": list(asked),
        "sampling_params": {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": list(starts),
        "top_logprobs_num": TOP,
    }
    found = server.post("/generate", body, timeout=120)
    answers = []
    for prompt, one in zip(asked, found, strict=True):
        meta = one["meta_info"]
        inputs, outputs = ([pair[0] for pair in meta[f"{x}_token_logprobs"]] for x in ("input", "output"))
        tokens = [pair[1] for pair in meta["output_token_logprobs"]]
        tops = [[top[:2] for top in tops] for tops in meta["output_top_logprobs"]]
        answers.append(Answer(prompt, inputs, tokens, outputs, tops, meta["cached_tokens"]))
    return answers


def misses(server: Server, asked: Sequence[list[int]]) -> list[Answer]:
    """Each prompt alone, on an empty cache."""
    answers = []
    for prompt in asked:
        server.flush()
        answers.append(ask(server, prompt))
    return answers


def examine(server: Server) -> Findings:
    """Ask everything."""
    found, asked = Findings(), prompts()
    found.misses = misses(server, asked)
    _hits(server, asked, found)
    _second_turn(server, found)
    server.flush()
    batches = [ask_all(server, asked, [0] * len(asked)), ask_all(server, asked, [len(p) - 1 for p in asked])]
    found.batch_equal = all(one.same(miss) for batch in batches for one, miss in zip(batch, found.misses, strict=True))
    return found


def last_page(prompt: Sequence[int]) -> int:
    """Where the page of the last token begins: so much of a prompt can be a hit."""
    return (len(prompt) - 1) // PAGE * PAGE


def _hits(server: Server, asked: list[list[int]], found: Findings) -> None:
    equal, cached, possible = True, 0, 0
    for prompt, alone in zip(asked, found.misses, strict=True):
        if not last_page(prompt):
            continue
        server.flush()
        miss, hit = (ask(server, prompt, last_page(prompt)) for _ in range(2))
        equal &= hit.same(miss) and miss.same(alone)
        cached, possible = cached + hit.cached, possible + last_page(prompt)
    found.hit_equals_miss, found.hit_share = equal and cached > 0, cached / possible


def _second_turn(server: Server, found: Findings) -> None:
    first = found.misses[SECOND_TURN_OF].prompt
    server.flush()
    answer = ask(server, first, last_page(first), TURN_TOKENS)
    # Pages that the answer filled are among those that are there.
    turn = [*answer.sequence, *prompts()[0]]
    hit = ask(server, turn, last_page(answer.sequence))
    server.flush()
    found.second_turn_equal = hit.same(ask(server, turn, last_page(answer.sequence))) and hit.cached > len(first)
