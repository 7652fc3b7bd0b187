"""Loss against the exact cache, token by token, from the outputs of both; the head is computed in slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_sglang.offline.packed import PackedModel

SLICE = 128
"""Tokens whose logits are held at a time."""


class Loss(NamedTuple):
    """Per token ``[n]``, float64."""

    kl: Tensor  # KL(raw || ours), nats
    nll: Tensor  # of the target
    top1: Tensor  # 1 where the likeliest token is the same


def compare(model: PackedModel, raw: Tensor, others: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, list[Loss]]:
    """Compare outputs with the exact ones.

    Args:
        raw: ``[n, C]``, outputs of the exact cache.
        others: outputs of other caches for the same tokens.
        targets: int64 ``[n]``, the tokens that follow.

    Returns:
        NLL of the exact cache, float64 ``[n]``, and each other's loss, all in main memory.
    """
    targets = targets.to(raw.device)
    nlls: list[Tensor] = []
    parts: list[list[Loss]] = [[] for _ in others]
    for start in range(0, len(raw), SLICE):
        span = slice(start, start + SLICE)
        full, target = model.logits(raw[span]).log_softmax(-1), targets[span, None]
        likely, weight = full.argmax(-1), full.exp()
        nlls.append(-full.gather(1, target)[:, 0].double().cpu())
        for other, part in zip(others, parts, strict=True):
            ours = model.logits(other[span]).log_softmax(-1)
            nll, top1 = -ours.gather(1, target)[:, 0].double(), (ours.argmax(-1) == likely).double()
            loss = ((weight * (full - ours)).sum(-1).double(), nll, top1)
            part.append(Loss(*(x.cpu() for x in loss)))
    return torch.cat(nlls), [Loss(*(torch.cat(x) for x in zip(*part, strict=True))) for part in parts]
