"""Every method of the benchmark by name: ours, our ablations, the papers' methods in our engine, and the rivals."""

from __future__ import annotations

import functools
import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.latent import LatentEdit
from benchmarks.rivals import crop
from benchmarks.rivals.hooks import Cache, ForwardCache, StackCache, timed
from benchmarks.rivals.rules import TEACACHE_1_3B, EasyCache, FirstBlock, MagCache, TeaCache, shifted
from benchmarks.settings import Setting, Source
from hetcache_core import CachePolicy
from hetcache_core.plan import forget
from hetcache_core.policy import FEW_STEPS
from hetcache_core.stats import RunStats
from nano import FLOW_SHIFT

EXACT = CachePolicy.preset("exact")
HERE = Path(__file__).resolve().parent
Knobs = dict[str, Any]
Policy = Callable[[int, float, Knobs], CachePolicy]


@dataclass(frozen=True)
class Outcome:
    """One run: a latent ``[1, 16, T, H, W]`` or a video ``[F, H, W, 3]``, its statistics, its speed-up."""

    stats: RunStats
    speed: float
    latents: Tensor | None = None
    video: np.ndarray | None = None
    held: int | None = None  # bytes kept between evaluations; None where they cannot be seen


class Case:
    """A clip of a setting and its full edit, which all others are compared with."""

    def __init__(self, setting: Setting, source: Source):
        self.setting, self.source = setting, source
        self.edit = LatentEdit(source, setting.cfg, source.seed, setting.sampler)
        self.edit.sample(1, EXACT)  # encodes the clip and warms up
        self.latents, self.full = self.edit.sample(setting.steps, EXACT)
        self._full_times = [self.full.seconds_of("F")]

    @functools.cached_property
    def reference(self) -> np.ndarray:
        """The full edit, ``[F, H, W, 3]`` float32 from 0 to 1."""
        return self.edit.decode(self.latents)

    @property
    def full_seconds(self) -> float:
        """Of all evaluations at the price of a full one, in the last two runs of the clip in full."""
        return statistics.mean(self._full_times[-2:]) * self.setting.steps

    def by_policy(self, policy: CachePolicy) -> Outcome:
        """A run of our engine, planned as if for the first time."""
        forget()
        latents, stats = self.edit.sample(self.setting.steps, policy)
        speed = stats.speed
        if stats.speed_is_estimated:  # it timed no full evaluation but its first, which warms up
            self._full_times.append(self.edit.sample(self.setting.steps, EXACT)[1].seconds_of("F"))
            speed = self.full_seconds / stats.seconds
        held = stats.peak_context_bytes + stats.peak_forecast_bytes + stats.peak_block_bytes
        return Outcome(stats, speed, latents, held=held)

    def by_cache(self, cache: Cache) -> Outcome:
        """A run with a rival's cache."""
        transformer = self.edit.pipe.transformer
        with cache.attached(transformer), timed(transformer, cache) as stats:
            latents, _ = self.edit.sample(self.setting.steps, None)
        return Outcome(stats, stats.speed, latents, held=stats.peak_forecast_bytes if cache.counted else None)


@dataclass(frozen=True)
class Method:
    """One way to edit in less time.

    Args:
        label: in tables.
        run: ``(case, speed, knobs)``; knobs as tuned, or empty.
        policy: ``(steps, speed, knobs)`` -> the policy, for methods of our engine.
        knobs: what tuning tries, mildest first; empty where the speed alone says what to do.
        every_speed: whether it is run at every speed of a setting by default, else at the middle one.
        kind: ``ours``, ``ablation``, ``paper`` or ``rival``.
        still_only: whether it needs a mask that stands still.
        by_mask: whether what it costs hangs on the mask, so that its knobs are chosen on masks of each size.
    """

    label: str
    run: Callable[[Case, float, Knobs], Outcome] | None = None
    policy: Policy | None = None
    knobs: tuple[Knobs, ...] = ()
    every_speed: bool = True
    kind: str = "rival"
    still_only: bool = False
    by_mask: bool = False
    needs: str = ""  # a package

    def __call__(self, case: Case, speed: float, knobs: Knobs) -> Outcome:
        if self.policy:
            return case.by_policy(self.policy(case.setting.steps, speed, knobs))
        return self.run(case, speed, knobs)


def fewer(steps: float, speed: float) -> int:
    """How many plain steps fit the time of a speed-up over that of so many."""
    return max(1, int(steps / (FITS * speed)))


FITS = 0.97  # share of a speed-up that counts as having reached it


def _fewer_steps(case: Case, speed: float, knobs: Knobs) -> Outcome:
    count = fewer(case.setting.steps, speed)
    latents, stats = case.edit.sample(count, EXACT)
    return Outcome(stats, case.setting.steps / count, latents, held=0)


def last_held(count: int) -> CachePolicy:
    """So many steps computed, and one more that holds the prediction of the last."""
    return CachePolicy(schedule="F" * count + "R", forecast_order=0)


def _fewer_held(case: Case, speed: float, knobs: Knobs) -> Outcome:
    count = fewer(case.setting.steps, speed)
    latents, stats = case.edit.sample(count + 1, last_held(count))
    return Outcome(stats, case.setting.steps / count, latents, held=stats.peak_forecast_bytes)


def _easycache(case: Case, speed: float, knobs: Knobs) -> Outcome:
    bounds = (shifted(percent, FLOW_SHIFT) for percent in easycache_bounds(knobs))
    return case.by_cache(ForwardCache(EasyCache(knobs["threshold"], *bounds)))


def easycache_bounds(knobs: Knobs) -> tuple[float, float]:
    """Between which shares of the schedule EasyCache may skip; the node's defaults."""
    return knobs.get("start", 0.15), knobs.get("end", 0.95)


def _teacache(case: Case, speed: float, knobs: Knobs) -> Outcome:
    return case.by_cache(StackCache(TeaCache(knobs["threshold"], TEACACHE_1_3B, case.setting.steps)))


def _teacache_refit(case: Case, speed: float, knobs: Knobs) -> Outcome:
    return case.by_cache(StackCache(TeaCache(knobs["threshold"], calibration()["teacache"], case.setting.steps)))


def _magcache(case: Case, speed: float, knobs: Knobs) -> Outcome:
    return case.by_cache(StackCache(magcache(knobs, case.setting.steps)))


def magcache(knobs: Knobs, steps: int) -> MagCache:
    """MagCache with the ratios calibrated on nano."""
    ratios = dict(enumerate(calibration()["magcache"]))
    return MagCache(knobs["threshold"], knobs["longest"], knobs["retention"], ratios, steps)


def _first_block(case: Case, speed: float, knobs: Knobs) -> Outcome:
    return case.by_cache(StackCache(FirstBlock(knobs["threshold"])))


def _first_block_diffusers(case: Case, speed: float, knobs: Knobs) -> Outcome:
    from benchmarks.rivals.packaged import FirstBlockOfDiffusers

    return case.by_cache(FirstBlockOfDiffusers(knobs["threshold"]))


def _cache_dit(case: Case, speed: float, knobs: Knobs) -> Outcome:
    from benchmarks.rivals.packaged import CacheDiT

    return case.by_cache(CacheDiT(case.edit.pipe, knobs["threshold"], case.setting.steps))


def _crop(case: Case, speed: float, knobs: Knobs) -> Outcome:
    source, setting = case.source, case.setting
    rows, columns = crop.box(source.mask, knobs["padding"])
    part = crop.cropped(source, rows, columns)
    start = crop.noise(source.mask.shape, rows, columns, source.seed)
    edit = LatentEdit(part, setting.cfg, source.seed, setting.sampler, start)
    steps = min(setting.steps, fewer(setting.steps / crop.share(source.mask.shape, rows, columns), speed))
    latents, stats = edit.sample(steps, EXACT)
    video = crop.stitched(source, edit.decode(latents), rows, columns)
    return Outcome(stats, case.full_seconds / stats.seconds, video=video, held=0)  # no whole evaluation is timed in it


@functools.cache
def calibration() -> dict:
    """What `benchmarks.rivals.calibrate` measured on nano."""
    return json.loads((HERE / "nano.json").read_text())


def _ours(**fields: Any) -> Policy:
    return lambda steps, speed, knobs: CachePolicy.preset("balanced", speed=speed, **fields)


def _forecast(steps: int, speed: float, knobs: Knobs) -> CachePolicy:
    """Forecasts alone; where reuse is off by default it has to be allowed, or there is nothing to measure."""
    return _ours(partials=False, max_reuse=5 if steps <= FEW_STEPS else None)(steps, speed, knobs)


def _paper(method: str, **fields: Any) -> Policy:
    return lambda steps, speed, knobs: CachePolicy(method=method, **fields, **knobs)


def _tier(label: str, **fields: Any) -> Method:
    return Method(label, policy=_ours(**fields), kind="ablation", every_speed=False)


def _thresholds(*values: float) -> tuple[Knobs, ...]:
    return tuple({"threshold": value} for value in values)


MAGCACHE_KNOBS = tuple(
    {"threshold": threshold, "longest": longest, "retention": retention}
    for retention in (0.2, 0.1) for longest in (1, 2, 3, 4, 6, 10, 15)
    for threshold in (0.03, 0.06, 0.12, 0.3, 1.0, 3.0)
)  # fmt: skip

MIXCACHE_KNOBS = tuple(
    {"trigger": trigger, "deviation": deviation}
    for trigger in (0.035, 0.1, 1.0) for deviation in (0.03, 0.1, 0.3, 1.0)
)  # fmt: skip

NO_REUSE = {"threshold": 1.0, "max_reuse": 0}  # partial wherever it may be: with few steps that can be the better half

EASYCACHE_THRESHOLDS = (
    0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0, 3.0
)  # fmt: skip

FREE = {"max_reuse": 20, "refresh": 100}  # the threshold alone decides; our rules for runs of reuse do not

HETCACHE_KNOBS = tuple(
    {**decided, "context_share": share}
    for share in (0.05, 0.3, 0.7)
    for decided in (
        *_thresholds(0.02, 0.03, 0.045, 0.06, 0.08, 0.11, 0.2, 0.4, 0.8), NO_REUSE,
        *({**knobs, **FREE} for knobs in _thresholds(0.06, 0.11, 0.2, 0.4, 0.8)),
    )
)  # fmt: skip

METHODS: dict[str, Method] = {
    "ours": Method("**HetCache**", policy=_ours(), kind="ours"),
    "forecast": Method("our forecasts alone", policy=_forecast, kind="ablation"),
    "partial": Method("our partial evaluations alone", policy=_ours(max_reuse=0, refresh=100), kind="ablation"),
    "share-0": _tier("ours, no context remembered", memory_share=0.0),
    "share-25": _tier("ours, a quarter of it", memory_share=0.25),
    "share-100": _tier("ours, all of it", memory_share=1.0),
    "held": _tier("ours, all of it, held still", memory_share=1.0, memory_order=0),
    "packed": _tier(
        "ours, packed in 8 bits", memory_share=1.0, memory_bits=8, memory_order=1, memory_turn_bits=2,
        memory_apart_bits=2,
    ),
    "shared": _tier("ours, one copy for cond and uncond", memory_share=1.0, memory_apart_bits=0),
    "replan": Method(
        "ours, planned anew on the way", policy=_ours(replan=True), every_speed=False, kind="ablation"
    ),
    "assumed": Method(
        "ours, by the profile assumed for real models", policy=_ours(profile="wan"), every_speed=False, kind="ablation"
    ),
    # what the default budget of 2048 MB leaves two real models at 480x832 (the README's tables of memory)
    "as-1.3b": _tier(
        "ours, as 1.3B at 33 frames gets it", profile="wan", memory_share=1.0, memory_bits=6, memory_order=1,
        memory_turn_bits=2, memory_apart_bits=2,
    ),
    "as-14b": _tier(
        "ours, as 14B at 81 frames gets it", profile="wan", memory_share=0.34, memory_bits=4, memory_order=0,
        memory_apart_bits=0,
    ),
    "hetcache-kv": Method(
        "ours, decided as in HetCache's paper", kind="ablation", every_speed=False,
        policy=_paper(
            "hetcache", forecast_order=2, memory_share=1.0, context_sampling="stalest", context_share=0.15,
            margin_space=0,
        ),
        knobs=(*_thresholds(0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22, 0.33, 0.5, 0.8), NO_REUSE),
    ),
    "hetcache": Method(
        "HetCache paper, our signal", policy=_paper("hetcache"), kind="paper", knobs=HETCACHE_KNOBS, by_mask=True
    ),
    # as published: no interval of its reaches twice the speed beside a VACE branch, and longer ones only spoil more
    "profilingdit": Method("ProfilingDiT", policy=_paper("profilingdit"), kind="paper", every_speed=False),
    "mixcache": Method("MixCache, with our forecasts", policy=_paper("mixcache"), kind="paper", knobs=MIXCACHE_KNOBS),
    "mixcache-held": Method(
        "MixCache, held", policy=_paper("mixcache", forecast_order=0), kind="paper", knobs=MIXCACHE_KNOBS
    ),
    "fewer-steps": Method("fewer steps", _fewer_steps),
    # Euler's last step is next to none in diffusers' schedule: who knows that pays for one evaluation less
    "fewer-steps-held": Method("fewer steps, the last held", _fewer_held),
    "easycache": Method(
        "EasyCache", _easycache,
        knobs=(
            *_thresholds(*EASYCACHE_THRESHOLDS),
            *({**knobs, "start": 0.0, "end": 1.0} for knobs in _thresholds(*EASYCACHE_THRESHOLDS)),
        ),
    ),
    "magcache": Method("MagCache, calibrated", _magcache, knobs=MAGCACHE_KNOBS),
    "first-block": Method(
        "first-block cache", _first_block,
        knobs=_thresholds(0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4, 0.6, 1.0, 2.0),
    ),
    "teacache-refit": Method(
        "TeaCache, refitted", _teacache_refit,
        knobs=_thresholds(0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4, 0.6),
    ),
    "teacache": Method(
        "TeaCache, published (1.3B)", _teacache,
        knobs=_thresholds(0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.3, 2.0),
    ),
    "first-block-diffusers": Method(
        "first-block cache, diffusers' own", _first_block_diffusers, every_speed=False,
        knobs=_thresholds(0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3),
    ),
    "cache-dit": Method(
        "cache-dit", _cache_dit, every_speed=False, needs="cache_dit",
        knobs=_thresholds(0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5),
    ),
    "crop": Method(
        "crop and stitch", _crop, still_only=True, knobs=tuple({"padding": padding} for padding in (0, 32, 48, 64, 96)),
    ),
}  # fmt: skip

# Not among the default ones: what they do is done better by another row. Named with --methods they run.
ASIDE = ("first-block-diffusers", "cache-dit")
IN_COMFYUI = (
    "ours", "forecast", "partial", "as-1.3b", "as-14b", "hetcache-kv", "hetcache", "profilingdit", "mixcache",
    "fewer-steps", "fewer-steps-held", "easycache",
)  # fmt: skip


def why_not(name: str, setting: Setting) -> str:
    """Why a method cannot run in a setting, or empty."""
    method = METHODS[name]
    if method.needs and importlib.util.find_spec(method.needs) is None:
        return f"the package {method.needs!r} is not installed"
    if method.still_only and (setting.moving or setting.real):
        return "it needs a mask that stands still"
    if setting.host == "comfyui" and name not in IN_COMFYUI:
        return "it is written for diffusers"
    if name == "shared" and setting.cfg == 1:
        return "at cfg 1 there is one stream"
    return ""
