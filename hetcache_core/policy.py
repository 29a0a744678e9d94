"""What the user asks for: one speed slider, one memory budget, and the finer settings behind them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from .context import SAMPLING
from .packed import WIDEST
from .semantic import MODES

METHODS = ("plan", "hetcache", "profilingdit", "mixcache", "measure", "profile", "off")
FEW_STEPS = 8


@dataclass(frozen=True)
class CachePolicy:
    """Settings of a run. Frozen and validated: an instance that exists is one that can be used.

    Important:
        speed: wanted speed-up of the denoising loop, 1.0 (exact: the stock output, byte for byte) to 8.0.
        memory_budget_mb: most megabytes (2**20 bytes) the context memory may hold; 0 remembers nothing.
        method: ``plan`` reaches ``speed`` by planning every evaluation beforehand; ``hetcache`` decides online by
            the paper's thresholds and takes no target; ``profilingdit`` reuses background blocks at intervals, as its
            paper does, and takes no target either; ``mixcache`` chooses online whether to reuse predictions,
            guidance or blocks; ``off`` computes everything, and so does ``measure``, which
            also records how the predictions change (:meth:`hetcache_core.stats.RunStats.profile`), and ``profile``,
            which records what the blocks look at (:attr:`hetcache_core.stats.RunStats.block_scores`).

    To tinker with (``None`` = chosen for the run):
        warmup, cooldown: full evaluations at the start and at the end; a chosen cool-down is shortened where the speed
            leaves too little for it.
        max_reuse: most reuse evaluations in a row; 0 forbids reuse. When None, a sixth of the run, 2 to 5, and no more
            than a tenth of it (3 at least) where that reaches the speed. Plans of 7 and 8 evaluations reuse one at a
            time; those of fewer only steps of less than half the mean length, one at a time.
        refresh: most evaluations from one full evaluation to the next.
        schedule: the decisions themselves, a letter an evaluation (``FFRPRF``: full, reuse, partial; B reuses the
            background blocks, G guidance, H is a partial one that reuses guidance), instead of a plan; evaluations
            beyond it are full.
        replan: whether the rest of a plan is made anew where predictions change otherwise than the profile says.
        partials: whether partial evaluations are allowed.
        margin_space, margin_time: rings of margin tokens (16 pixels each; when None, 0, or 1 for ``hetcache``) and
            margin latent frames.
        context_share: share of the context each partial evaluation computes again; when None, less at higher speeds and
            where the speed is out of reach otherwise (for ``hetcache`` 0.7, the paper's).
        context_sampling: which: ``none``, ``stride``, ``rotating``, ``stalest``; or, as in the HetCache paper, chosen
            at full evaluations by K-Means over what they show (``kmeans``), by how much the edit attends to them
            (``attention``), or ``both``. When None, ``stalest``, or ``both`` for ``hetcache``.
        memory_share: share of the context kept as keys and values, 0 to 1; when None, as much as fits the budget
            (``hetcache``: none, as its paper prunes).
        memory_bits: bits of a number of what is kept: 8, 6, 4, 2, or 16 for the model's dtype.
        memory_order: of the polynomial that extrapolates remembered keys and values; 0 holds them.
        memory_turn_bits: the same for the slopes and bends that takes.
        memory_apart_bits: the same for the other streams' differences from the first; 0 takes them for equal, 16
            remembers each on its own.
        memory_offload: kept in host memory, page-locked for a CUDA device, where torch rounds blocks up to powers of
            two: up to twice the budget may be taken.
        forecast_order: of the polynomial that extrapolates predictions along the evaluation index, 2 when None; 0 holds
            them (``hetcache``: 0, the paper's).
        forecast_damping: factor on what is extrapolated, 0 to 1; fitted online when None.
        forecast_quantity: ``v`` or ``x0``; x0 for stochastic samplers when None.
        threshold: HetCache's D, accumulated relative change up to which an evaluation is reused: higher = faster.
        trigger: MixCache caches where predictions change by less than this from one evaluation to the next.
        deviation: MixCache's upper quality bound: where what it reuses misses by more, it caches fewer evaluations in a
            row, by less than a third of it, more. Higher = faster.
        partial_factor: up to ``threshold * partial_factor`` it is partial (paper: 1.5), beyond it is full.
        block_profile: which blocks ProfilingDiT reuses: a shipped block profile's name, a JSON file, or ``auto`` (by
            the model's shape).
        interval: evaluations from one full one to the next (paper: 6 of 50; scaled below 30 and above 50 evaluations).
        interval_min: the interval shrinks to this towards the end; it is constant when None.
        profile: the error profile behind the plan: a shipped name, a JSON file, or ``auto`` (by the model's shape).
        mask_threshold: mask values above it are generated.
        max_mask_fraction: above this share of generative tokens everything is computed.

    Raises:
        ValueError: any field out of range; the message names the field, its value and what is allowed.
    """

    speed: float = 3.0
    memory_budget_mb: float = 2048.0
    method: str = "plan"
    warmup: int | None = None
    cooldown: int | None = None
    max_reuse: int | None = None
    refresh: int | None = None
    schedule: str = ""
    replan: bool = False
    partials: bool = True
    margin_space: int | None = None
    margin_time: int = 0
    context_share: float | None = None
    context_sampling: str | None = None
    memory_share: float | None = None
    memory_bits: int | None = None
    memory_order: int | None = None
    memory_turn_bits: int | None = None
    memory_apart_bits: int | None = None
    memory_offload: bool = False
    forecast_order: int | None = None
    forecast_damping: float | None = None
    forecast_quantity: str | None = None
    threshold: float = 0.10
    trigger: float = 0.10
    deviation: float = 0.10
    partial_factor: float = 1.5
    block_profile: str = "auto"
    interval: int = 6
    interval_min: int | None = None
    profile: str = "auto"
    mask_threshold: float = 0.1
    max_mask_fraction: float = 0.9
    name: str = field(default="custom", compare=False)

    def __post_init__(self):
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and low <= value <= high):
                raise ValueError(f"{name} must lie between {low} and {high}, got {value!r}")
        for name in ("schedule", "profile", "block_profile", "name"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name, allowed in _CHOICES:
            value = getattr(self, name)
            if not any(value is a or (isinstance(value, str) and value == a) for a in allowed):
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")

        if not re.fullmatch("(F[FPRBGH]*)?", self.schedule):
            raise ValueError(f"schedule must start with F and hold only F, P, R, B, G and H, got {self.schedule!r}")
        if self.interval_min is not None and self.interval_min > self.interval:
            raise ValueError(f"interval_min must be at most the interval, {self.interval}, got {self.interval_min!r}")
        if self.schedule and self.method != "plan":
            raise ValueError(f"a schedule needs method 'plan', got {self.method!r}")
        if set("PH") & set(self.schedule) and not self.partials:
            raise ValueError("the schedule has partial evaluations (P or H) but partials is off")

    @property
    def exact(self) -> bool:
        """Whether this policy computes everything."""
        return self.method in ("off", "measure", "profile") or (self.speed == 1.0 and not self.schedule)

    def settled(self) -> CachePolicy:
        """With what its method decides filled in; what only a run can decide stays None."""
        usual = {**_USUAL, **_AS_PUBLISHED.get(self.method, {})}
        return dataclasses.replace(self, **{n: value for n, value in usual.items() if getattr(self, n) is None})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> CachePolicy:
        """One of ``exact``, ``quality``, ``balanced``, ``fast``, ``few-step``, with fields changed at will."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        unknown = sorted(changes.keys() - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown policy fields: {', '.join(unknown)}")
        return cls(**{**PRESETS[name], "name": name, **changes})

    def to_json(self) -> str:
        """All fields as JSON; :meth:`from_json` gives an equal policy back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CachePolicy:
        """Inverse of :meth:`to_json`. Missing fields take their defaults; unknown ones are refused."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is not a policy in JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"a policy in JSON is an object, got {type(values).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"unknown policy fields: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)


_RANGES = (
    ("speed", 1.0, 8.0),
    ("memory_budget_mb", 0, 1 << 20),
    ("warmup", 1, 100),
    ("cooldown", 0, 100),
    ("max_reuse", 0, 20),
    ("refresh", 1, 100),
    ("margin_space", 0, 16),
    ("margin_time", 0, 16),
    ("context_share", 0.0, 1.0),
    ("memory_share", 0.0, 1.0),
    ("forecast_order", 0, 2),
    ("memory_order", 0, 2),
    ("forecast_damping", 0.0, 1.0),
    ("threshold", 0.0, 100.0),
    ("trigger", 0.0, 100.0),
    ("deviation", 0.0, 100.0),
    ("partial_factor", 1.0, 10.0),
    ("interval", 1, 100),
    ("interval_min", 1, 100),
    ("mask_threshold", 0.0, 1.0),
    ("max_mask_fraction", 0.0, 1.0),
)
_WHOLE = (
    *("warmup", "cooldown", "max_reuse", "refresh", "margin_space", "margin_time", "forecast_order", "memory_order"),
    *("interval", "interval_min"),
)
_BITS = (None, *WIDEST, 16)
_CHOICES = (
    ("method", METHODS),
    ("context_sampling", (None, *SAMPLING, *MODES)),
    ("forecast_quantity", (None, "v", "x0")),
    ("memory_bits", _BITS),
    ("memory_turn_bits", _BITS),
    ("memory_apart_bits", (*_BITS, 0)),
    ("memory_offload", (True, False)),
    ("partials", (True, False)),
    ("replan", (True, False)),
)

_USUAL = {"margin_space": 0, "context_sampling": "stalest", "forecast_order": 2}
_AS_PUBLISHED = {
    "hetcache": {
        "margin_space": 1, "context_share": 0.7, "context_sampling": "both", "memory_share": 0.0, "forecast_order": 0
    }
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"speed": 1.0},
    "quality": {"speed": 2.0},
    "balanced": {"speed": 3.0},
    "fast": {"speed": 4.0},
    "few-step": {"speed": 2.0},
}
