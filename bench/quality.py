"""What the compression costs: KL, top-1 agreement and perplexity on WikiText-2, next to physical bytes.

``python -m bench.quality`` runs a Hugging Face model twice over the same windows, once with its own attention and once
with every layer's attention replaced by our codec and read rule, through the same code that serves.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.data import wikitext
from bench.plot import scatter
from bench.table import print_table, write_json
from leankv_kernels import RawPages, RecordLayout, RecordStore, build_plan, get_ops
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.models import resolve_model_path
from leankv_sglang.read_rule import Compressor
from leankv_sglang.significance import STRATEGIES

FORMS: dict[str, LeanKVConfig] = {
    "all k8v4": LeanKVConfig("k8v4", "k8v4"),
    "k8v4,k4v2, a_h 1": LeanKVConfig(),
    "k8v4,k4v2, a_h 2": LeanKVConfig(alpha_high=2.0),
    "all k4v2, near page k8v4": LeanKVConfig(significance="none"),
    "all k4v2": LeanKVConfig("k4v2", "k4v2"),
    "all k4v2, not rotated": LeanKVConfig("k4v2", "k4v2", rotation="none"),
    "a_h 1, a_l 0.3 (pruned)": LeanKVConfig(alpha_low=0.3),
}


@dataclass
class Patched:
    """A model whose attention runs through a compressor for one sequence at a time."""

    model: Any
    config: LeanKVConfig
    page_size: int

    def __post_init__(self) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register("leankv", self._attend)
        shape = self.model.config
        self.head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        self.layout = RecordLayout(
            self.page_size, shape.num_key_value_heads, self.head_dim, *self.config.formats, near=self.config.window > 0
        )

    def logits(self, ids: Tensor) -> Tensor:
        """Logits ``[T, V]`` of one sequence ``[T]`` with every layer compressed."""
        length, layers = len(ids), self.model.config.num_hidden_layers
        pages = -(-length // self.page_size)
        store = RecordStore(self.layout, layers, pages, "cpu")
        slots = torch.arange(self.page_size, (pages + 1) * self.page_size, dtype=torch.int32)[None]
        self.plan = build_plan(torch.tensor([0]), [0], [length], slots, self.page_size, self.config.window)
        shape = (layers, self.layout.num_kv_heads)
        self.compressor = Compressor(
            get_ops("cpu", self.config.kernels),
            store,
            self.config.rotation,
            STRATEGIES[self.config.significance](),
            torch.as_tensor(self.config.alpha_high, dtype=torch.float64).expand(shape),
            torch.as_tensor(self.config.alpha_low, dtype=torch.float64).expand(shape),
        )
        self.model.set_attn_implementation("leankv")
        try:
            return self.model(ids[None], use_cache=False).logits[0].float()
        finally:
            self.model.set_attn_implementation("sdpa")

    def _attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, scaling: float, **_kwargs: Any
    ) -> tuple[Tensor, None]:
        plan = self.plan
        key, value = k.new_zeros(2, plan.num_units, self.page_size, k.shape[1], k.shape[3])
        scores = torch.zeros(plan.num_units, q.shape[1], self.page_size, dtype=torch.int32)
        raw = RawPages(key, value, scores, plan.unit_range)
        raw.write(plan, k[0].transpose(0, 1), v[0].transpose(0, 1))
        out = self.compressor.forward(module.layer_idx, plan, q[0].transpose(0, 1), raw, scaling)
        return out[None].to(q.dtype), None

    def bytes_per_token(self) -> dict[str, float]:
        """Physical bytes of the last sequence's full pages per token: whole records, and with near parts trimmed."""
        usage = self.compressor.store.usage()
        tokens = usage.records // self.model.config.num_hidden_layers * self.page_size
        held = usage.blocks * self.layout.block_bytes
        return {"full": held / tokens, "trimmed": (held - usage.near) / tokens}


def evaluate(
    model: Any, windows: list[Tensor], form: str, config: LeanKVConfig, page_size: int, skip: int
) -> dict[str, Any]:
    """One row: the form's loss against the model's own attention, over tokens from ``skip`` on of each window."""
    patched = Patched(model, config, page_size)
    kl = nll = nll_full = top1 = 0.0
    count = 0
    for ids in tqdm(windows, desc=form, unit="window"):
        full = model(ids[None], use_cache=False).logits[0, skip:-1].float().log_softmax(-1)
        ours = patched.logits(ids)[skip:-1].log_softmax(-1)
        target = ids[skip + 1 :, None]
        kl += float((full.exp() * (full - ours)).sum(-1).sum())
        nll -= float(ours.gather(1, target).sum())
        nll_full -= float(full.gather(1, target).sum())
        top1 += float((full.argmax(-1) == ours.argmax(-1)).sum())
        count += len(target)
    raw = 4 * patched.layout.num_kv_heads * patched.head_dim * model.config.num_hidden_layers
    held = patched.bytes_per_token()
    ppl, ppl_full = (torch.tensor(x / count).exp().item() for x in (nll, nll_full))
    return {
        "form": form,
        "ratio": raw / held["full"],
        "ratio_trimmed": raw / held["trimmed"],
        "kl": kl / count,
        "top1": top1 / count,
        "ppl": ppl,
        "ppl_rel": ppl / ppl_full - 1,
        "tokens": count,
    }


def load(name: str | None) -> tuple[Any, Any]:
    """Model and tokenizer, in the model's dtype."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model_path(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    return model, AutoTokenizer.from_pretrained(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="catalog name or folder (default: SmolLM2)")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--skip", type=int, default=0, help="leave the first tokens of each window out")
    parser.add_argument("--page-size", type=int, default=128)
    parser.add_argument("--window", type=int, help="pages of near view, instead of each form's own")
    parser.add_argument("--form", action="append", choices=list(FORMS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="PNG or SVG")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    ids = tokenizer(wikitext(), return_tensors="pt").input_ids[0]
    windows = list(ids[: args.windows * args.length].split(args.length))
    rows = []
    with torch.inference_mode():
        for form in args.form or FORMS:
            config = FORMS[form] if args.window is None else replace(FORMS[form], window=args.window)
            rows.append(evaluate(model, windows, form, config, args.page_size, args.skip))
    print_table(rows, f"WikiText-2, {args.windows} windows of {args.length} tokens")
    write_json(args.json, rows)
    if args.plot:
        scatter(
            rows,
            "ratio_trimmed",
            "kl",
            "form",
            args.plot,
            x_text="bytes of a 16-bit cache over physical bytes, near parts trimmed",
            y_text="KL against the full cache",
            title=f"WikiText-2, {args.windows} windows of {args.length} tokens",
        )


if __name__ == "__main__":
    main()
