"""``python -m leankv_sglang.plan``: its figures follow from the layout, its errors are sentences."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.byte_size import parse_bytes
from leankv_sglang.compression.build import make_layout
from leankv_sglang.compression.profile import shipped_profile
from leankv_sglang.compression.profile_file import measured_ratios
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.hybrid.sizes import WindowNeed
from leankv_sglang.kvcache.sizing import open_page_bytes, page_bytes
from leankv_sglang.models import resolve_model_path
from leankv_sglang.models.shape import ModelShape, read_shape
from leankv_sglang.plan import FORMS, lasting_units, main, plan_rows, profile_rows
from tests.sentences import is_one_sentence

SMOLLM2, LLAMA3 = ModelShape(30, 9, 3, 64), ModelShape(32, 32, 8, 128)
CONFIG = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 << 30), ("80G", 80 * 10**9), ("1500000000", 1_500_000_000), ("1.5 MiB", 3 << 19), ("7kb", 7000)],
)
def test_bytes_are_read_in_every_unit(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "2 apples", "-1G", "1.2.3", ".", "nan", "inf", "9" * 400, "9000000TiB"])
def test_what_is_not_bytes_is_refused(text: str) -> None:
    with pytest.raises(LeanKVError) as refusal:
        parse_bytes(text)
    assert is_one_sentence(str(refusal.value))


def test_shape_comes_from_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_shape(str(tmp_path)) == SMOLLM2
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"head_dim": 128, "num_key_value_heads": None}))
    assert read_shape(str(tmp_path)) == ModelShape(30, 9, 9, 128)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LeanKVError) as refusal:
        read_shape(str(tmp_path))
    assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": True},
        {"num_hidden_layers": "30"},
        {"num_attention_heads": 0},
        {"num_attention_heads": None},
        {"num_attention_heads": 10**30},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": [3]},
        {"head_dim": float("nan")},
        {"head_dim": 10**30},
        {"hidden_size": None},
        {"hidden_size": 1},
        {"hidden_size": 10**30},
    ],
    ids=str,
)
def test_a_shape_that_no_model_has_is_refused(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(tmp_path, json.dumps(CONFIG | changes), capsys)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "[" * 200_000, "\ud800"], ids=lambda text: text[:9])
def test_a_config_file_that_is_none_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(tmp_path, text, capsys)


def check_refused(folder: Path, config: str, capsys: pytest.CaptureFixture[str], *argv: str) -> None:
    """The command ends with 2 and one sentence."""
    (folder / "config.json").write_text(config, errors="surrogatepass")
    assert main(["--model", str(folder), *argv]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert is_one_sentence(said)


@pytest.mark.parametrize(
    "argv",
    [
        ("--memory", "0"),
        ("--memory", "9" * 400),
        ("--max-running-requests", "0"),
        ("--max-running-requests", "-5"),
        ("--max-running-requests", str(10**30)),
        ("--near-pages", "-1"),
        ("--near-pages", str(10**30)),
        ("--model", ""),
        ("--model", "/dev/null"),
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_an_argument_that_cannot_be_is_refused(
    argv: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(tmp_path, json.dumps(CONFIG), capsys, *argv)


@pytest.mark.parametrize("shape", [SMOLLM2, LLAMA3])
def test_the_pool_it_proposes_fits_and_one_page_more_does_not(shape: ModelShape) -> None:
    memory, requests = 3 << 30, 8
    rows = plan_rows(shape, memory, 128, requests, 1)
    assert rows[0]["tokens held"] == memory // (4 * shape.layers * shape.kv_heads * shape.head_dim)
    for row, form in zip(rows[1:], FORMS, strict=True):
        assert row["flags"] == form.flags
        high, _, low = form.tiers.partition(",")
        layout = make_layout(LeanKVConfig(high=high, low=low or high), 128, shape.kv_heads, shape.head_dim)
        pages = row["--max-total-tokens"] // 128
        taken = pages * page_bytes(layout, shape.layers) + (requests + 1) * open_page_bytes(
            layout, shape.layers, shape.query_heads
        )
        assert taken <= memory < taken + page_bytes(layout, shape.layers)
        cost = lasting_units(layout, form, 1, shape.layers)
        assert 0 < cost <= 1
        assert row["tokens held"] == int(row["--max-total-tokens"] / cost)


def test_fewer_high_tokens_and_pruning_hold_more() -> None:
    held = {row["form"]: row["tokens held"] for row in plan_rows(LLAMA3, 8 << 30, 128, 8, 1)}
    order = [held[form.name] for form in FORMS[:4]]
    assert order == sorted(order)
    assert held["all high"] > 2.2 * held["16 bits, stock SGLang"]


def test_too_little_memory_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert main(["--model", str(tmp_path), "--memory", "10M"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert is_one_sentence(said.removeprefix("error: "))
    assert main(["--model", str(tmp_path), "--memory", "1GiB", "--max-running-requests", "4"]) == 0
    printed = capsys.readouterr().out
    assert "30 layers, 9 query heads on 3 KV heads of 64" in printed
    assert all(form.name in printed for form in FORMS)
    assert "--leankv-profile" not in printed


def test_a_shipped_profile_has_rows_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = shipped_profile(resolve_model_path(None))
    assert shipped is not None
    rows = profile_rows(shipped, SMOLLM2, 2 << 30, 128, 16)
    assert [row["flags"].split()[1] for row in rows] == ["near-lossless", "balanced", "small"]
    for row, ratio in zip(rows, measured_ratios(shipped).values(), strict=True):
        # Some boundaries stay whole, and the requests' open pages are not the cache's.
        assert 0.75 * ratio < row["x 16 bits"] < 1.1 * ratio
    assert profile_rows(shipped, SMOLLM2, 2 << 30, 64, 16) == []
    assert main(["--memory", "2GiB"]) == 0
    assert "--leankv-profile balanced" in capsys.readouterr().out


def test_it_says_what_windows_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    gemma = {"architectures": ["Gemma3ForCausalLM"], "layer_types": kinds * 4, "sliding_window": 512}
    shape = {"num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    (tmp_path / "config.json").write_text(json.dumps(gemma | shape))
    need = WindowNeed(512, 128, 4, 4096)
    least = need.running + need.ends
    # 20 layers of one head of 256 channels, keys and values of two bytes.
    each = 20 * 256 * 2 * 2
    kept = []
    for memory in (512 * 2**20, 2**31):
        assert main(["--model", str(tmp_path), "--max-running-requests", "4", "--memory", str(memory)]) == 0
        said = capsys.readouterr().out
        found = re.search(r"keeps ([\d,]+) tokens of windows in this memory, ([\d,]+) MiB: for 4 running", said)
        assert found is not None
        tokens, mib = (int(number.replace(",", "")) for number in found.groups())
        assert mib == round(tokens * each / 2**20)
        assert f"{memory:,} bytes in all, {tokens * each:,} of them for windows" in said
        # Pages have the rest, and as many windows as so many of them need.
        units = int(re.findall(r"alpha-high A +[\d,]+ +[\d,]+ +([\d,]+)", said)[0].replace(",", ""))
        assert tokens == pytest.approx(need.ratio(units) * units, rel=0.01)
        kept.append(tokens)
    assert least <= kept[0] < kept[1]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["BertModel"]}, "cannot serve this model"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}, "latent attention"),
    ],
)
def test_what_is_served_nowhere_has_no_plan(
    config: dict[str, object], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    (tmp_path / "config.json").write_text(json.dumps(config | shape))
    assert main(["--model", str(tmp_path)]) == 2
    assert why in capsys.readouterr().err


def test_known_models_and_stated_shapes_need_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "meta-llama/llama-3-8b", "--memory", "16GiB"]) == 0
    known = capsys.readouterr().out
    flags = ["--layers", "32", "--query-heads", "32", "--kv-heads", "8", "--head-dim", "128"]
    assert main([*flags, "--memory", "16GiB"]) == 0
    assert capsys.readouterr().out == known
    assert "32 layers, 32 query heads on 8 KV heads of 128" in known


SHAPES = "--layers {} --query-heads {} --kv-heads {} --head-dim 64"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--layers 32", "Give --model, or all of --layers"),
        ("--model Llama-3-8B " + SHAPES.format(1, 1, 1), "Give --model, or all"),
        (SHAPES.format(0, 1, 1), "give no shape of a model: num_hidden_layers"),
        (SHAPES.format(2, 3, 2), "cannot share 2 KV heads evenly"),
        ("--model Llama-9", "is neither a folder nor a known name"),
    ],
)
def test_shapes_that_cannot_be_are_one_sentence(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert is_one_sentence(told.removeprefix("error: "))


DOCUMENTS = [(name, i) for name, tables in (("README.md", 1), ("docs/sizing.md", 2)) for i in range(tables)]


def documented(name: str, number: int) -> tuple[str, list[dict[str, str]]]:
    """Of the tables of plans in a document one, by its columns, and the arguments that the text before it names."""
    text = (Path(__file__).resolve().parents[1] / name).read_text()
    tables = [one for one in re.finditer(r"(^\|.*\n)+", text, re.MULTILINE) if "B/token held" in one[0].split("\n")[0]]
    head, _, *rows = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in tables[number][0].splitlines())
    args = re.findall(r"`python -m leankv_sglang\.plan ([^`]*)`", text[: tables[number].start()])[-1]
    return args, [dict(zip(["form", *head[1:]], row, strict=True)) for row in rows]


@pytest.mark.parametrize(("name", "number"), DOCUMENTS)
def test_the_documents_have_what_is_printed(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[dict[str, str]] = []
    monkeypatch.setattr("leankv_sglang.plan.print_table", lambda rows, _title: printed.extend(rows))
    args, rows = documented(name, number)
    assert main(args.split()) == 0
    by_form = {row["form"]: row for row in printed}
    assert rows
    for row in rows:
        assert row == {column: by_form[row["form"]][column] for column in row}
