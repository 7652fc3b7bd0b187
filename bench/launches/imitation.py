"""A device in name only: tensors in main memory of which some count as the device's, and what the host does to them.

A storage counts as the device's if it was said to be (:meth:`Imitation.own`), if a tensor was moved or made there
(``x.to(device)``, ``torch.zeros(..., device=device)``), or if an operation on the device's tensors has written it. So
a program written for a GPU runs as it is, and every operation is one of:

- a **launch**: an operation on the device's tensors that is no view;
- a **copy**, into the device or out of it;
- a **sync**: whatever would wait for the device. Numbers, arrays or truth values of its tensors; a copy out that is
  not asynchronous, a copy in that is not ``non_blocking``; shapes that depend on data (``nonzero``, boolean masks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leankv_sglang.kvcache.transfer import Arrival

_ASKS = {
    getattr(Tensor, name)
    for name in ("cpu", "tolist", "item", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__")
}
"""What a tensor is asked for on the host."""
_DATA_SHAPED = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
_ASKED = {"_local_scalar_dense", "equal", "is_nonzero", "allclose"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"}
"""Operations that launch nothing, besides views."""


@dataclass
class Counts:
    """What happened."""

    launches: int = 0
    copies: int = 0
    syncs: int = 0
    waits: list[str] = field(default_factory=list)
    """What each sync was."""


class Event:
    """Passes when :meth:`Imitation.finish` says that the device has caught up."""

    def __init__(self, wait: Callable[[str], None]) -> None:
        self.passed, self._wait = False, wait

    def query(self) -> bool:
        """Whether the device has come by."""
        return self.passed

    def synchronize(self) -> None:
        """Wait for that."""
        if not self.passed:
            self._wait("Event.synchronize")


class Imitation:
    """The device, and what was counted since :meth:`start`."""

    def __init__(self) -> None:
        self.counts = Counts()
        # By identity; kept, so that none is taken for another that lies where it lay.
        self._storages: dict[int, Any] = {}
        self._events: list[Event] = []
        self._quiet = 0
        self._modes = (_Operations(self), _Calls(self))

    # ---- whose a tensor is ----

    def own(self, thing: Any) -> Any:
        """Have all tensors in a tree of containers be the device's; returns the tree."""
        for leaf in tree_leaves(thing):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = storage
        return thing

    def owns(self, thing: Any) -> bool:
        """Whether a thing is a tensor of the device."""
        return isinstance(thing, Tensor) and thing.untyped_storage()._cdata in self._storages

    # ---- counting ----

    def start(self) -> Counts:
        """Count from nothing."""
        self.counts = Counts()
        return self.counts

    def finish(self) -> None:
        """The device has done all it was given."""
        for event in self._events:
            event.passed = True
        self._events.clear()

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        self.counts.syncs += 1
        self.counts.waits.append(what)
        self.finish()

    @property
    def counting(self) -> bool:
        """Whether what happens now is counted."""
        return not self._quiet

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While something happens that was counted as a whole."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the program runs."""
        operations, calls = self._modes
        with operations, calls:
            yield

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as one launch, whatever it does in itself; what it returns is the device's."""

        def launch(*args: Any, **kwargs: Any) -> Any:
            self.counts.launches += 1
            with self.quiet():
                return self.own(function(*args, **kwargs))

        return launch

    def copy_out(self, values: Tensor) -> Arrival:
        """What ``leankv_sglang.kvcache.transfer.copy_out`` does on a GPU."""
        self.counts.copies += 1
        event = Event(self.wait)
        self._events.append(event)
        with self.quiet():
            return Arrival(values.clone(), event)


class _Operations(TorchDispatchMode):
    """Operations below torch's interface: whose are the results, which are launches, and which need an answer."""

    def __init__(self, device: Imitation) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, name = self._device, func.overloadpacket.__name__
        if not device.counting:
            return func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if device.owns(tensor)]
        result = func(*args, **(kwargs or {}))
        if not ours:
            return result
        if name in _DATA_SHAPED or name in _ASKED:
            device.wait(name)
        elif name in _INDEXED and any(
            device.owns(t) and t.dtype == torch.bool for t in tensors[1:] if t is not args[0]
        ):
            device.wait(f"{name} by a mask")
        if name in ("copy_", "_to_copy") and len(ours) < len(tensors):
            device.counts.copies += 1
            if not (args[2] if len(args) > 2 else False) or not device.owns(args[0]):
                device.wait(name)
        elif len(ours) < len(tensors) and any(t.dim() for t in tensors if not device.owns(t)):
            # Torch moves indices by itself, and waits.
            device.counts.copies += 1
            device.wait(f"{name} with tensors of the host")
        if not func.is_view and name not in _FREE:
            device.counts.launches += 1
        if name != "copy_" or device.owns(args[0]):
            device.own(result)
        return result


class _Calls(TorchFunctionMode):
    """Calls that on a CPU never get below torch's interface: to the device, from it, and what is made there."""

    def __init__(self, device: Imitation) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, named = self._device, kwargs or {}
        if not device.counting:
            return func(*args, **named)
        if func in _ASKS and device.owns(args[0]):
            device.wait(f"Tensor.{func.__name__}")
            with device.quiet():
                result = func(*args, **named)
                return result.clone() if isinstance(result, Tensor) else result
        if func is Tensor.to and any(isinstance(x, torch.device | str) for x in (*args[1:2], named.get("device"))):
            return self._move(args[0], args[1] if len(args) > 1 else named["device"], args, named)
        if named.get("device") is not None and not isinstance(args[0] if args else None, Tensor):
            with device.quiet():
                made = func(*args, **named)
            if func is torch.tensor:
                device.counts.copies += 1
                device.wait("torch.tensor on the device")
            elif func not in (torch.empty, torch.empty_strided):
                device.counts.launches += 1
            return device.own(made)
        return func(*args, **named)

    def _move(self, tensor: Tensor, target: Any, args: Any, named: dict[str, Any]) -> Tensor:
        device = self._device
        if device.owns(tensor):
            # The device's own name is that of the host; only the word for the host is meant for it.
            if target == "cpu":
                device.wait("Tensor.to")
                with device.quiet():
                    return tensor.clone()
            return Tensor.to(tensor, *args[1:], **named)
        device.counts.copies += 1
        if not named.get("non_blocking"):
            device.wait("Tensor.to, blocking")
        with device.quiet():
            return device.own(Tensor.to(tensor, *args[1:], **named).clone())
