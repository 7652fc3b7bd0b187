"""Calibrating models with sliding windows and with experts: of the layers that live in pages, and for a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leankv_sglang.calibrate import __main__ as command
from leankv_sglang.calibrate import explore
from leankv_sglang.calibrate.capture import Layer, capture
from leankv_sglang.calibrate.sensitivity import full_pages
from leankv_sglang.compression.build import make_layout
from leankv_sglang.compression.profile_file import load_profile
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import full_layers, read_shape
from tests.calibrate.conftest import SMALL
from tests.e2e.forked import Zygote
from tests.models_served import MODELS
from tests.sentences import is_one_sentence
from tests.tiny_models import PAGE, tiny_folder, tokens

pytestmark = pytest.mark.usefixtures("home")

CAPTURED = ("gemma2", "gemma3", "cohere2", "granite-swa", "mimo-v2", "granite")


def _model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.fixture(scope="module", params=CAPTURED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _model(MODELS[request.param].build(tmp_path_factory.mktemp(request.param)).truth)


@pytest.fixture(scope="module")
def seen(model: Any) -> list[Layer]:
    return capture(model, torch.tensor(tokens(200, 1)), draws=64, skip=PAGE, seed=0)


def test_what_is_captured_is_of_full_layers_and_gradients_tell_the_kl(model: Any, seen: list[Layer]) -> None:
    """In a model whose windows, caps, sinks and logits are transformers' own."""
    ids, full = torch.tensor(tokens(200, 1))[None], full_layers(model.config.to_dict())
    assert len(seen) == len(full)
    given, change = {}, torch.zeros(seen[-1].out.shape)
    change[:, 70:] = 1e-2 * torch.randn(change[:, 70:].shape, generator=torch.Generator().manual_seed(2))
    flat = change.transpose(0, 1).flatten(1)

    def keep(layer: int, moved: bool) -> Any:
        def hook(_module: Any, args: Any) -> Any:
            given[layer] = args[0]
            return (args[0] + flat,) if moved else args

        return hook

    logits = []
    for moved in (False, True):
        hooks = [
            model.model.layers[i].self_attn.o_proj.register_forward_pre_hook(keep(i, moved and i == full[-1]))
            for i in full
        ]
        with torch.inference_mode():
            logits.append(model(ids, use_cache=False).logits[0, PAGE:-1].double().log_softmax(-1))
        for hook in hooks:
            hook.remove()
        if not moved:
            for layer, i in zip(seen, full, strict=True):
                mine = layer.out.transpose(0, 1).flatten(1)
                torch.testing.assert_close(mine, given[i][0], atol=1e-4, rtol=1e-3)
    true = float((logits[0].exp() * (logits[0] - logits[1])).sum())
    slope = torch.einsum("shtd,htd->st", seen[-1].grads, change)
    assert 0.6 < float(0.5 * slope.double().square().sum() / len(slope)) / true < 1.6


def test_scores_of_a_page_are_those_of_the_model(seen: list[Layer]) -> None:
    """Capped, and without sinks, which a page does not see."""
    layer = seen[0]
    pages = full_pages(layer, PAGE)
    group = len(layer.q) // len(layer.k)
    scores = layer.q[0, :PAGE] @ layer.k[0, :PAGE].T * layer.scale
    if layer.cap:
        scores = layer.cap * (scores / layer.cap).tanh()
    weights = scores.masked_fill(torch.ones(PAGE, PAGE).triu(1).bool(), float("-inf")).softmax(-1)
    torch.testing.assert_close(
        pages.column_scores[0, 0] / 2**22, weights.sum(0), atol=1e-4, rtol=1e-3, check_dtype=False
    )
    assert group * pages.num_kv_heads == pages.column_scores.shape[1]


def test_what_no_server_takes_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "model", 2)
    config = json.loads((folder / "config.json").read_text())
    capsys.readouterr()
    for field, why in ({"kv_lora_rank": 64}, "latent attention"), ({"mamba_d_state": 16}, "recurrent"):
        (folder / "config.json").write_text(json.dumps(config | field))
        assert command.main(["--model", str(folder), "--out", str(tmp_path / "mine.json")]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert is_one_sentence(said.removeprefix("error: ").strip())


def test_layers_that_attend_in_another_way_are_missed(seen: list[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout(LeanKVConfig(), PAGE, 2, 32)
    monkeypatch.setattr(explore, "capture", lambda *_: seen)
    with pytest.raises(LeanKVError, match=f"attention of {len(seen)} layers, and {len(seen) + 1} have no sliding"):
        explore._explore(None, [torch.empty(0)], explore.Setting(LeanKVConfig(), PAGE), layout, len(seen) + 1)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("gemma2", 3), ("olmo3", 2), ("qwen3-moe", 4)])
def test_a_server_takes_the_profile(name: str, layers: int, tmp_path: Path, zygote: Zygote) -> None:
    folders, out = MODELS[name].build(tmp_path / name), tmp_path / "mine.json"
    argv = ["--model", str(folders.served), "--out", str(out), "--target-ratio", "3.0", "--name", "mine", *SMALL]
    assert command.main(argv) == 0
    document = json.loads(out.read_text())
    assert document["model"]["num_layers"] == len(document["points"]["mine"]["alpha_high"]) == layers
    load_profile(str(out)).check_model(read_shape(folders.served).cache, str(folders.served))
    flags = ("--leankv-profile", str(out), "--max-total-tokens", "8192", "--max-running-requests", "4")
    with zygote.serve("--model-path", str(folders.served), *flags) as server:
        assert f"{layers} layers, 2 KV heads" in server.log_text()
        server.flush()
        miss, hit = (server.generate(tokens(400, 3), 8) for _ in range(2))
        assert (miss.cached, hit.cached) == (0, 384)
        assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)
        assert [len(heads) for heads in server.info()["leankv"]["bytes_by_head"]] == [2] * layers
