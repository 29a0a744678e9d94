"""A pretend graphics card: tensors that say they lie on another device, and are computed on the CPU.

On a CPU nothing tells a tensor that was left in host memory from one on the card, so that code which mixes them passes
every test and fails for every user. Here each operation is seen before it is done, and one that a card would refuse is
refused. What waits for the card (a number read, a copy to the host) is counted.

    with Card() as card, torch.inference_mode():
        model(*map(card.put, arguments))
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.races import Event, Line, Races, Stream, stream

_register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
WHY_NOT = "" if _register else f"torch {torch.__version__} takes no device made in Python"
NAME = "card"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
TAKES_HOST_INDICES = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount", "is_nonzero",
         "repeat_interleave")  # fmt: skip


class Module:
    """What torch asks a device's module for, and what the pack does."""

    Event, Stream, stream = Event, Stream, staticmethod(stream)

    def current_stream(self, device=None):
        return Stream.current

    def synchronize(self, device=None):
        for line in Races.current.streams:
            Races.current.host.wait(line.now())

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


if _register:
    _register(NAME, Module())
    DEVICE = torch.device(NAME, 0)


class OnCard(torch.Tensor):
    """A tensor on the card; ``inner`` has its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        sizes = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **sizes)
        self.inner = inner
        return self

    def __repr__(self):
        return f"OnCard({self.inner})"

    def tolist(self):
        Card.current.waits["tolist"] += 1
        Races.current.host.wait(Stream.current.now())
        return self.inner.tolist()

    def record_stream(self, stream):
        Races.current.told(self, stream)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with Card.current:
            return function(*args, **(kwargs or {}))


class Card(TorchDispatchMode):
    """While open, there is a card. ``waits`` counts by operation what waited for it, ``races`` watches its streams."""

    current: Card

    def __init__(self):
        super().__init__()
        self.waits, self.races = Counter(), Races()
        Card.current = self

    def put(self, value):
        """A value with its tensors on the card."""
        return tree_map(lambda t: OnCard(t) if isinstance(t, torch.Tensor) else t, value)

    def put_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """A model with its weights on the card, moved there."""
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = self.put(buffer)
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(self.put(parameter.detach()), requires_grad=False)
        return model

    def take(self, value):
        """A value with its tensors back on the host."""
        return tree_map(_inner, value)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function._can_decompose() and function not in MOVES:  # as in inference mode, where nothing else does it
            with self:
                answer = function.decompose(*args, **kwargs)
            if answer is not NotImplemented:
                return answer
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        waits = self.waits.total()
        here, writes = self._on_card(function, args, kwargs), _written(function, args, kwargs)
        line = Stream.current if here or any(isinstance(t, OnCard) for t in given) else self.races.host
        self.races.begin(line, given, writes)
        answer = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if not writes:
            answer = self._made(line, answer, given, here)
        if self.waits.total() > waits:
            self.races.host.wait(line.now())
        return writes[0] if writes else answer

    def _made(self, line: Line, answer, given, here: bool):
        """An operation's answer, on the card where it belongs; views of what was given are nothing new."""
        old = {t.untyped_storage().data_ptr() for t in map(_inner, given)}
        answer = self.put(answer) if here else answer
        for new in tree_leaves(answer):
            if isinstance(new, torch.Tensor) and _inner(new).untyped_storage().data_ptr() not in old:
                self.races.made(line, new, self._pins)
        return answer

    def _on_card(self, function, args, kwargs) -> bool:
        """Whether an operation's answer lies on the card; ``kwargs`` are made fit for the CPU.

        Raises:
            RuntimeError: it mixes tensors of both, numbers apart.
        """
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        card = [t for t in tensors if isinstance(t, OnCard)]
        host = [t for t in tensors if not isinstance(t, OnCard) and t.ndim]
        indices = tree_leaves(args[1]) if function in TAKES_HOST_INDICES and isinstance(args[0], OnCard) else []
        refused = [t for t in host if not any(t is index for index in indices)]  # a card fetches indices itself
        if card and refused and function not in MOVES:
            sizes = [tuple(t.shape) for t in refused]
            raise RuntimeError(f"{function} mixes tensors of {DEVICE} and cpu, {sizes} among them")
        here = isinstance(args[0], OnCard) if function is aten.copy_.default else bool(card)
        if kwargs.get("device") is not None:
            here = torch.device(kwargs["device"]).type == NAME
            kwargs["device"] = torch.device("cpu")
        self._pins = kwargs.pop("pin_memory", False)
        name = function._schema.name.split("::")[1]
        late = kwargs.get("non_blocking") or (function is aten.copy_.default and args[2:] and args[2])
        late = late and self.races.is_pinned(args[0])
        leaves = function in MOVES and card and not here and not late
        masked = any(isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in indices)
        brings = indices and (host or masked or (len(args) > 2 and args[2].ndim == 0))  # counts, or copies a number
        if (card and name in WAITS) or leaves or brings:
            self.waits[name] += 1
        return here


def _written(function, args, kwargs) -> list[torch.Tensor]:
    """What an operation writes to."""
    arguments = function._schema.arguments
    named = {**dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}
    writes = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return [t for name in writes for t in tree_leaves(named.get(name)) if isinstance(t, torch.Tensor)]


def _inner(value):
    return value.inner if isinstance(value, OnCard) else value
