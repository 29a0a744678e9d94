"""The rules on diffusers' WanVACETransformer3DModel: through its own hook registry, timed as HetCache times itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from benchmarks.rivals.rules import EasyCache, StackRule
from hetcache_core import CachePolicy
from hetcache_core.device import Stopwatch
from hetcache_core.error_model import FULL, REUSE
from hetcache_core.stats import RunStats
from hetcache_core.tokens import TokenGrid

HOOK = "rival"


class _Wrap(ModelHook):
    """A module's forward goes through ``act(original_forward, *args, **kwargs)``."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def new_forward(self, module, *args, **kwargs):
        return self.act(self.fn_ref.original_forward, *args, **kwargs)


@contextmanager
def wrapped(module: torch.nn.Module, act) -> Iterator[None]:
    """Within this block the module's forward goes through ``act``."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(_Wrap(act), HOOK)
    try:
        yield
    finally:
        registry.remove_hook(HOOK, recurse=False)


class Place:
    """Where a run is: a new evaluation begins when the timestep changes; streams are numbered by their order."""

    def __init__(self):
        self.evaluation, self.stream, self.timestep = -1, 0, None

    def move(self, timestep: float) -> bool:
        """Note a call; whether an evaluation begins with it."""
        if timestep == self.timestep:
            self.stream += 1
            return False
        self.evaluation, self.stream, self.timestep = self.evaluation + 1, 0, timestep
        return True

    @property
    def sigma(self) -> float:
        return self.timestep / 1000


class Cache:
    """Something that makes a transformer skip work within ``attached``."""

    counted = True  # whether ``bytes`` can be known

    def __init__(self):
        self.place = Place()

    @contextmanager
    def attached(self, transformer: torch.nn.Module) -> Iterator[None]:
        """Patch the transformer within this block."""
        yield

    @property
    def bytes(self) -> int:
        """Held between evaluations."""
        return 0


class ForwardCache(Cache):
    """EasyCache: the whole forward is skipped."""

    def __init__(self, rule: EasyCache):
        super().__init__()
        self.rule = rule

    @contextmanager
    def attached(self, transformer: torch.nn.Module) -> Iterator[None]:
        with wrapped(transformer, self._act):
            yield

    def _act(self, forward, *args, **call):
        x, timestep = _inputs(args, call)
        if self.place.move(timestep):
            self.rule.begin_evaluation()
        return (self.rule(self.place.stream, x, self.place.sigma, lambda: forward(*args, **call)[0]),)

    @property
    def bytes(self) -> int:
        return self.rule.bytes


def _inputs(args: tuple, call: dict) -> tuple[Tensor, float]:
    """(latent, timestep) of a call of the transformer"""
    x = call["hidden_states"] if "hidden_states" in call else args[0]
    timestep = call["timestep"] if "timestep" in call else args[1]
    return x, float(timestep.max())


class StackCache(Cache):
    """TeaCache, MagCache, first-block cache: the blocks are skipped, their residual is added; VACE blocks too.

    The decision is taken where the VACE branch begins, the first place that sees the embedded input and the projected
    time embedding; so a skipped evaluation computes neither branch. (TeaCache and MagCache, published for models
    without VACE, leave this open; to skip the branch is what serves them best.) The residual holds the hints, which
    are therefore nothing on a skipped evaluation.

    Args:
        rule: what decides.
    """

    def __init__(self, rule: StackRule):
        super().__init__()
        self.rule = rule
        self.residuals: dict[Hashable, Tensor] = {}
        self._skipping = False
        self._base: Tensor | None = None  # what the residual is taken from: the stack's input, or the probe's output
        self._probe: Tensor | None = None

    @contextmanager
    def attached(self, transformer: torch.nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            self._blocks = transformer.blocks
            stack.enter_context(wrapped(transformer, self._call))
            for i, block in enumerate(transformer.vace_blocks):
                stack.enter_context(wrapped(block, partial(self._hint, i)))
            for i, block in enumerate(transformer.blocks):
                stack.enter_context(wrapped(block, partial(self._block, i)))
            stack.enter_context(wrapped(transformer.norm_out, self._end))
            yield

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in self.residuals.values()) + getattr(self.rule, "bytes", 0)

    def _call(self, forward, *args, **call):
        self.place.move(_inputs(args, call)[1])
        return forward(*args, **call)

    def _hint(self, index, forward, hidden, text, control, time, rotary):
        if index == 0:
            self._decide(hidden, text, time, rotary)
        if self._skipping:
            return hidden.new_zeros(1), control
        return forward(hidden, text, control, time, rotary)

    def _decide(self, hidden: Tensor, text: Tensor, time: Tensor, rotary) -> None:
        stream, self._base, signal = self.place.stream, hidden, time
        if self.rule.probes:
            self._skipping = False
            self._base = self._probe = self._blocks[0](hidden, text, time, rotary)
            signal = self._probe - hidden
        skip = self.rule.skip(self.place.evaluation, stream, signal)
        self._skipping = skip and stream in self.residuals

    def _block(self, index, forward, hidden, *args):
        if index == 0 and self._probe is not None:
            hidden, self._probe = self._probe, None
            return hidden + self.residuals[self.place.stream] if self._skipping else hidden
        if not self._skipping:
            return forward(hidden, *args)
        return hidden + self.residuals[self.place.stream] if index == 0 else hidden

    def _end(self, forward, hidden):
        if not self._skipping:
            self.residuals[self.place.stream] = hidden - self._base
        self._base = None
        return forward(hidden)


@contextmanager
def timed(transformer: torch.nn.Module, cache: Cache) -> Iterator[RunStats]:
    """Statistics of what runs within this block, timed per call as HetCache's are.

    An evaluation counts as computed when the last block's self-attention ran, whatever the cache says of itself.
    """
    place, state = Place(), {}
    stats = RunStats(CachePolicy.preset("exact"), TokenGrid(1, 1, 1), None)

    def before(module, args, call):
        x, timestep = _inputs(args, call)
        place.move(timestep)
        state.update(watch=Stopwatch(x.device), ran=False)

    def after(module, args, output):
        decision = FULL if state["ran"] else REUSE
        stats.add(place.evaluation, place.sigma, decision, "", 0, state["watch"], 0, cache.bytes)

    handles = [
        transformer.register_forward_pre_hook(before, with_kwargs=True),
        transformer.register_forward_hook(after),
        transformer.blocks[-1].attn1.register_forward_hook(lambda *_: state.update(ran=True)),
    ]
    try:
        yield stats
    finally:
        for handle in handles:
            handle.remove()
