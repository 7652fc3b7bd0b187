"""What torch operations hold at most: bytes of the tensors that were made and still lived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """While it is active, ``bytes`` is the most that tensors made in it have held together."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation; what comes out and did not go in is new."""
        given = {self._key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (key := self._key(x)) not in given:
                self._made[key] = StorageWeakRef(x.untyped_storage()), x.untyped_storage().nbytes()
        self._drop_dead()
        self.bytes = max(self.bytes, sum(size for _, size in self._made.values()))
        return out

    @staticmethod
    def _key(x: torch.Tensor) -> int:
        return x.untyped_storage()._cdata

    def _drop_dead(self) -> None:
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes that the tensors which ``run`` makes hold together at most."""
    with Peak() as peak:
        run()
    return peak.bytes
