"""Cache Policy Settings: one slider, and what lies behind it for those who want to look."""

from __future__ import annotations

import os
import pathlib

from comfy_api.latest import io

from ..hetcache_core.block_profile import SHIPPED, BlockProfile
from ..hetcache_core.policy import PRESETS, CachePolicy
from ..hetcache_core.profile import ErrorProfile
from .compat import known
from .paths import as_written
from .profile_model import profile_file
from .types import CATEGORY, Policy

AUTO = -1  # of a number that is chosen for the run
CUSTOM = "custom"
FILES = ("profile", "block_profile")


def _whole(name: str, high: int, tooltip: str, low: int = AUTO, default: int = AUTO):
    note = f" {AUTO} chooses for you." if low == AUTO else ""
    return io.Int.Input(name, **known(io.Int.Input, default=default, min=low, max=high, optional=True, advanced=True,
                                      tooltip=tooltip + note))  # fmt: skip


def _share(name: str, tooltip: str, default: float = AUTO):
    low, note = (AUTO, f" {AUTO} chooses for you.") if default == AUTO else (0.0, "")
    return io.Float.Input(name, **known(io.Float.Input, default=default, min=low, max=1.0, step=0.01, optional=True,
                                        advanced=True, tooltip=tooltip + note))  # fmt: skip


def _switch(name: str, default: bool, tooltip: str):
    return io.Boolean.Input(name, **known(io.Boolean.Input, default=default, optional=True, advanced=True,
                                          tooltip=tooltip))  # fmt: skip


def _text(name: str, default: str, tooltip: str):
    return io.String.Input(name, **known(io.String.Input, default=default, optional=True, advanced=True,
                                         tooltip=tooltip))  # fmt: skip


def _methods() -> dict[str, list]:
    """The inputs of every method."""
    return {
        "plan": [],
        "hetcache": [
            io.Float.Input("threshold", default=0.10, min=0.0, max=10.0, step=0.01,
                           tooltip="How much the picture may drift before a step is computed. Higher is faster and "
                           "costs fine detail inside the mask."),
            io.Float.Input("partial_factor", default=1.5, min=1.0, max=10.0, step=0.1,
                           tooltip="How long the masked region alone is computed before everything is. Higher is "
                           "faster and ties the edit less to its surroundings."),
            io.Combo.Input("context_sampling", options=["both", "kmeans", "attention", "rotating"], default="both",
                           tooltip="Which of the surroundings is computed with the masked region. both: of every kind "
                           "of content what the edit looks at most, as in the paper. kmeans: some of every kind. "
                           "attention: what it looks at most. rotating: an even spread, never the same twice."),
        ],
        "profilingdit": [
            io.Int.Input("interval", default=6, min=1, max=100,
                         tooltip="Steps from one full step to the next, of 30 to 50; with fewer or more it shrinks or "
                         "grows with them. Higher is faster and costs motion and detail."),
            io.Int.Input("interval_min", default=AUTO, min=AUTO, max=100,
                         tooltip=f"The interval shrinks to this towards the end. {AUTO} keeps it as it is."),
            io.String.Input("block_profile", default="auto",
                            tooltip="Which of the model's blocks are reused: the name HetCache Profile Model was "
                            "given, a file of its, or auto."),
        ],
        "mixcache": [
            io.Float.Input("trigger", default=0.10, min=0.0, max=10.0, step=0.01,
                           tooltip="Steps are reused where the picture changes by less than this from step to step. "
                           "Higher is faster and costs detail."),
            io.Float.Input("deviation", default=0.10, min=0.0, max=10.0, step=0.01,
                           tooltip="How far reused steps may miss before fewer are reused in a row. Higher is faster "
                           "and costs motion and detail."),
        ],
        "off": [],
    }  # fmt: skip


class PolicySettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HetCachePolicySettings",
            display_name="Cache Policy Settings",
            category=CATEGORY,
            description="How much faster masked edits should be, and what may be traded for it. Connect it to HetCache "
            "Patch Model; without it that node works as 'balanced'.",
            inputs=[
                io.Combo.Input("preset", options=[CUSTOM, *PRESETS], default=CUSTOM,
                               tooltip="custom: what is set below counts. exact, quality (2x), balanced (3x), fast "
                               "(4x) and few-step (2x, for 4 to 8 steps) are complete settings; with them only the "
                               "memory budget below counts."),
                io.Float.Input("speed", default=3.0, min=1.0, max=8.0, step=0.1,
                               display_mode=io.NumberDisplay.slider,
                               tooltip="How many times faster sampling should be. 1.0 gives the very same picture as "
                               "without this pack; on the demo model 2 is hard to tell from it and 4 changes fine "
                               "detail inside the mask. "
                               "When a clip does not allow it, Cache Stats says what was reached and why. Methods "
                               "other than plan have settings of their own instead; 1.0 switches them off as well."),
                io.Float.Input("memory_budget_mb", default=2048.0, min=0.0, max=65536.0, step=64.0,
                               tooltip="Most graphics memory, in megabytes, for remembering the unchanged part of the "
                               "clip. More keeps the edit better tied to its surroundings; 0 remembers nothing."),
                io.DynamicCombo.Input("method", tooltip="plan: every step is planned beforehand to reach the speed. "
                                      "hetcache: the HetCache paper's way, which decides while sampling by thresholds "
                                      "and takes no target speed. profilingdit: the ProfilingDiT paper's: it computes "
                                      "everything every few steps and only some of the model's blocks between. "
                                      "mixcache: the MixCache paper's, with our forecasts: while sampling it "
                                      "reuses steps, guidance or blocks, whichever harms least. off: no caching.",
                                      options=[io.DynamicCombo.Option(*option) for option in _methods().items()]),
                _whole("warmup", 100, "Steps computed in full at the start, where the picture takes shape."),
                _whole("cooldown", 100, "Steps computed in full at the end; they mend the seam around the mask."),
                _whole("max_reuse", 20, "Most steps in a row for which nothing is computed; long runs of them soften "
                       "motion and texture. 0: every step computes something."),
                _whole("refresh", 100, "Most steps from one full step to the next. Fewer keep the edit closer to its "
                       "surroundings, and are slower."),
                _whole("margin_space", 16, "Rings of 16 pixels around the mask computed with it. More blends the edge "
                       "better and is slower."),
                _whole("margin_time", 16, "Latent frames (4 frames each) before and after the mask computed with it. "
                       "More helps where the mask moves fast, and is slower.", 0, 0),
                _share("context_share", "Share of the surroundings looked at afresh while only the masked region is "
                       "computed. More keeps light and colour of the edit in step with them, and is slower."),
                _switch("partials", True, "Allow steps that compute the masked region only. Off leaves plain step "
                        "caching."),
                _switch("memory_offload", False, "Remember the surroundings in the computer's memory instead of the "
                        "graphics card's, at most twice the budget. For when graphics memory is short."),
                _share("mask_threshold", "Mask values above this are edited. Lower takes in more of a soft edge.", 0.1),
                _share("max_mask_fraction", "Masks that cover more of the clip than this are computed in full, as "
                       "nothing would be saved.", 0.9),
                _text("schedule", "", "The steps themselves, a letter each: F full, P masked region only, R reuse, B "
                      "some blocks of the model only, G one guidance side only, H both, as in FFRPRF. Overrides the "
                      "speed."),
                _text("profile", "auto", "How fast your model's pictures take shape, as measured on it in Python: a "
                      "JSON file, or auto. Not the file of HetCache Profile Model, which is a block_profile."),
                _switch("replan", False, "Plan the rest anew where pictures take shape otherwise than the profile "
                        "says. For models without a profile of their own; it can help or harm."),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="Connect to HetCache Patch Model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, method=None, profile=None, **_) -> list:
        """Changes where a profile's file is written anew."""
        blocks = method.get("block_profile") if isinstance(method, dict) else None
        given = {"profile": profile, "block_profile": blocks}
        files = [pathlib.Path(_file_of(kind, name)) for kind, name in given.items() if isinstance(name, str)]
        return [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if os.path.isfile(f)]

    @classmethod
    def execute(
        cls, preset: str, speed: float, memory_budget_mb: float, method: dict | None = None, **fine
    ) -> io.NodeOutput:
        return io.NodeOutput(make_policy(preset, speed, memory_budget_mb, method, **fine))


def make_policy(preset: str, speed: float, memory_budget_mb: float, method: dict | None, **fine) -> CachePolicy:
    """The policy of these settings; ValueError says which of them is wrong, and what to do.

    Args:
        method: ``{"method": name, input: value}``; None where the host dropped one it does not know.
    """
    if preset != CUSTOM:
        return CachePolicy.preset(preset, memory_budget_mb=memory_budget_mb)
    if method is None:
        raise ValueError("Cache Policy Settings: the method is missing, or not one this version knows. Choose one on "
                         f"this node ({', '.join(_methods())}), or a preset.")  # fmt: skip
    fine = {name: value for name, value in {**method, **fine}.items() if not _left_to_us(name, value)}
    fine |= {name: value.strip() for name, value in fine.items() if isinstance(value, str)}
    fine |= {name: _file_of(name, fine[name]) or "auto" for name in FILES if name in fine}
    try:
        policy = CachePolicy(speed=speed, memory_budget_mb=memory_budget_mb, **fine)
        for kind, name in ((ErrorProfile, policy.profile), (BlockProfile, policy.block_profile)):
            if name != "auto":
                kind.load(name)  # here, where it is set, and not at the sampler
    except ValueError as error:
        raise ValueError(f"Cache Policy Settings: {error}. Correct it on this node, or choose a preset.") from None
    return policy


def _file_of(kind: str, name: str) -> str:
    """What a profile's name stands for: of blocks, a file that HetCache Profile Model made by it; else as written.

    The names that every installation knows mean the same on all of them.
    """
    name = as_written(name)
    made = profile_file(name) if kind == "block_profile" and name not in ("", "auto", *SHIPPED) else None
    return str(made) if made and os.path.isfile(made) else name


def _left_to_us(name: str, value) -> bool:
    """Whether a number says to choose for the run: negative, or a zero where that could mean nothing else."""
    if type(value) not in (int, float):
        return False
    return value < 0 or (value == 0 and name in ("warmup", "refresh", "interval_min"))
