"""Every file that benches read, pinned: where it comes from, its hash, its licence."""

from __future__ import annotations

from dataclasses import dataclass

from leankv_sglang.models.catalog import WheelPart

RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """One file.

    Args:
        path: in the data folder.
        origin: a URL at a pinned commit, or a file of a wheel on the package index.
        licence: of the text.
    """

    path: str
    origin: str | WheelPart
    sha256: str
    size: int
    licence: str

    @property
    def said(self) -> str:
        """The origin in few words."""
        if isinstance(self.origin, WheelPart):
            return f"PyPI {self.origin.package} {self.origin.version}"
        owner, repository, commit = self.origin.removeprefix(f"{RAW}/").split("/")[:3]
        return f"GitHub {owner}/{repository}@{commit[:7]}"


def _words(kind: str, sha256: str, size: int) -> Source:
    part = WheelPart("wonderwords", "3.0.1", f"wonderwords/assets/{kind}list.txt")
    return Source(f"ruler-words/{kind}list.txt", part, sha256, size, "MIT")


TEXT = Source(
    "wikitext-2/wiki.test.raw",
    f"{RAW}/Tylogi/TyloQuant/7989d038b13ca737da11a95fb90e77ae059f33c0/data/wikitext-2-raw/wiki.test.raw",
    "4f3e427e4aff23acff917a8a51aeae21bf12832256e26914c8fc250dcef4103c",
    1290547,
    "CC BY-SA 3.0",
)
QUESTIONS = Source(
    "mt-bench/question.jsonl",
    f"{RAW}/lm-sys/FastChat/0e6d3e4beaab66f4d3f93db72541a4abab8af28d/fastchat/llm_judge/data/mt_bench/question.jsonl",
    "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    48929,
    "Apache-2.0",
)
TRACE = Source(
    "mooncake-traces/conversation_trace.jsonl",
    f"{RAW}/kvcache-ai/Mooncake/3b5a594133958449a1feaf1c9e0fc1b553e34a28/FAST25-release/traces/conversation_trace.jsonl",
    "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    3029533,
    "Apache-2.0",
)
PROBLEMS = Source(
    "gsm8k/test.jsonl",
    f"{RAW}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    749738,
    "MIT",
)
SOURCES = (
    TEXT,
    QUESTIONS,
    TRACE,
    PROBLEMS,
    _words("noun", "8d88b3ebc2e2969ed92ebe49cdb0c8a87c2ad3b27493d7afdff608f2e51c5bc9", 54752),
    _words("adjective", "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131", 7403),
    _words("verb", "9fbf5e4e69b8869aebd88e6d545312ff9f878a747327ede5f6dbbba5c27b08ad", 6967),
)

ARTICLES = WheelPart(
    "gensim",
    "4.4.0",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
)
"""A hundred articles of Wikipedia (CC BY-SA) that gensim's own tests read; the stand-in for the text is of them."""
ARTICLES_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
ARTICLES_WHEEL_BYTES = 27_800_000
WORDS_WHEEL_BYTES = 52_000

BABILONG = (
    "BABILong is not fetched: its sets (github FYYFU/HeadKV@0862a09, reason_needle/babilong-100examples, of "
    "booydar/babilong, Apache-2.0) are arrow files, to be written row by row as babilong/qa1_2k.jsonl.gz and so on "
    "for the task babilong."
)
