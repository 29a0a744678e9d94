"""How well plans are foretold, and what planning anew is worth where they are not.

    python -m benchmarks.foretold --clips 4 --workers 2 --out benchmarks/results/foretold.json

Tuning clips of nano. *Few steps*: plans of 6 steps that differ in what they compute and in how much context they renew,
each with the error the model foretells and the one it has; a fit says what `profile.FEW_RENEWAL` and
`error_model.FEW_STALE` should be. *Watched*: how far forecasts miss and the surroundings move in planned runs, over
what nano's own profile says; `methods.replanned` holds its runs against these. *Planned anew*: runs that stay with
their plan and runs that need not, by nano's profile and by the one assumed for real models, which is not nano's.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from unittest import mock

import numpy as np
from scipy.optimize import least_squares

from benchmarks.latent import LatentEdit
from benchmarks.rows import compare_all
from benchmarks.settings import MAIN, Setting
from hetcache_core import CachePolicy, ErrorProfile
from hetcache_core.costs import Costs
from hetcache_core.error_model import FEW_STALE, ErrorModel, Rules
from hetcache_core.methods.replanned import SEEN_DRIFT, SEEN_MISS, Replanned
from hetcache_core.profile import FEW_RENEWAL, USUAL_SHARE
from hetcache_core.stats import RunStats

FEW = Setting(steps=6, cfg=1.0)
PLANS, SHARES = ("FPPFPP", "FPPFPR", "FPPPPP", "FPPPPR", "FPPPFR", "FPFPPR"), (0.0, 0.05, 0.1, 0.3)
COSTS = Costs(0.4)  # errors do not depend on them
PROFILES = ("nano", "wan")


class Clip:
    """A tuning clip of a setting and its full edit."""

    def __init__(self, setting: Setting, index: int):
        source = setting.source(index, "tuning")
        self.steps, self.edit = setting.steps, LatentEdit(source, setting.cfg, source.seed, setting.sampler)
        self.reference, stats = self.edit.sample(self.steps, CachePolicy.preset("exact"))
        self._tokens = stats.classes.generative

    def run(self, **policy) -> tuple[float, RunStats]:
        """Error of the final latent in the edit, relative to its size; statistics."""
        result, stats = self.edit.sample(self.steps, CachePolicy(**policy))
        return self.edit.error(result, self.reference, self._tokens), stats


def few(index: int) -> list[dict]:
    """A row per plan of few steps and share of the context it renews: its error."""
    clip, rows = Clip(FEW, index), []
    sigmas = clip.edit.sigmas(FEW.steps)
    for plan in PLANS:
        for share in SHARES:
            error, stats = clip.run(schedule=plan, context_share=share)
            row = {"clip": index, "kind": "few", "plan": plan, "share": share, "error": error, "sigmas": sigmas}
            rows.append(row | {"speed": stats.predicted_speed})
    return rows


def planned(index: int) -> list[dict]:
    """Rows of what runs see along the way, and a row per profile, speed and way to plan."""
    clip, rows = Clip(MAIN, index), []
    noted: list[tuple[str, float]] = []

    def note(method: Replanned, what: str, measured: float, foretold: float) -> None:
        noted.append((what, measured / foretold * {"predictions": SEEN_MISS, "context": SEEN_DRIFT}[what]))
        whole(method, what, measured, foretold)

    whole = Replanned._note
    for profile in PROFILES:
        for speed in MAIN.speeds:
            for replan in (False, True):
                noted.clear()
                with mock.patch.object(Replanned, "_note", note):
                    error, stats = clip.run(speed=speed, profile=profile, replan=replan)
                rows.append({
                    "clip": index, "kind": "planned", "profile": profile, "speed": speed, "replan": replan,
                    "error": error, "decisions": stats.decisions, "planned_anew": stats.note.count("planned anew"),
                })  # fmt: skip
                if replan and profile == "nano":
                    rows += [{"clip": index, "kind": "watched", "what": what, "ratio": ratio} for what, ratio in noted]
    return rows


def model(row: dict, max_reuse: int | None = None) -> ErrorModel:
    """The error model, with nano's profile, of a row of few steps: ``sigmas`` and the ``share`` renewed."""
    nano, sigmas = ErrorProfile.load("nano").renewing(row["share"], few=True), row["sigmas"]
    return ErrorModel(sigmas, nano, COSTS, Rules.of(CachePolicy(max_reuse=max_reuse), nano, len(sigmas) - 1))


def fitted(rows: list[dict], terms: np.ndarray) -> tuple[float, float, float, float]:
    """FEW_RENEWAL and FEW_STALE that foretell best, and by how many dB errors miss then, and with the shipped ones.

    Least squares of the logarithm; a factor of each clip is taken out.

    Args:
        rows: of few steps. terms: their errors foretold, by cause, ``[len(rows), 3]``.
    """
    forecast, stale, spill = terms.T
    shares, clips = (np.array([row[key] for row in rows]) for key in ("share", "clip"))
    errors = np.log([row["error"] for row in rows])

    def renewed(renewal: float) -> np.ndarray:
        return np.maximum(1 - renewal * shares, 0.1) / (1 - renewal * USUAL_SHARE)

    def misfit(x: np.ndarray) -> np.ndarray:
        renewal, factor = x
        now = stale * factor / FEW_STALE * renewed(renewal) / renewed(FEW_RENEWAL)
        rest = errors - np.log(forecast + now + spill)
        for clip in set(clips):
            rest[clips == clip] -= rest[clips == clip].mean()
        return rest

    shipped = np.array([FEW_RENEWAL, FEW_STALE])
    best = least_squares(misfit, shipped, bounds=([0.0, 0.05], [2.9, 10.0])).x
    return (*best, *(8.686 * misfit(x).std() for x in (best, shipped)))


def decibels(error: float) -> float:
    return -20 * math.log10(error)


def mean_db(rows: list[dict]) -> float:
    return statistics.mean(decibels(row["error"]) for row in rows)


def _kind(result: dict, kind: str) -> list[dict]:
    return [row for row in result["rows"] if row["kind"] == kind]


def few_table(rows: list[dict]) -> Iterator[str]:
    by_plan: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        by_plan[row["plan"], row["share"]].append(row)
    terms = {id(row): model(row).terms(row["plan"]) for row in rows}
    renewal, stale, misfit, shipped = fitted(rows, np.array([*terms.values()]))
    yield "| plan | context renewed | speed planned | error in the edit | foretold |"
    yield "|---|---|---|---|---|"
    for (plan, share), found in sorted(by_plan.items(), key=lambda item: -mean_db(item[1])):
        foretold = statistics.mean(decibels(sum(terms[id(row)])) for row in found)
        speed = statistics.median(row["speed"] for row in found)
        yield f"| {plan} | {share:.0%} | {speed:.2f}x | {mean_db(found):.1f} dB | {foretold:.1f} dB |"
    yield ""
    yield (
        f"Errors are foretold to {shipped:.1f} dB, a factor for each clip aside, with FEW_RENEWAL {FEW_RENEWAL:g} and "
        f"FEW_STALE {FEW_STALE:g}; fitted to these rows alone, with {renewal:.2g} and {stale:.2g}, to {misfit:.1f} dB."
    )


def watched_line(rows: list[dict]) -> str:
    found = {what: [row["ratio"] for row in rows if row["what"] == what] for what in ("predictions", "context")}
    miss, drift = (np.percentile(values, (25, 50, 75)) for values in found.values())
    return (
        f"In planned runs of {MAIN.steps} steps forecasts missed by {miss[1]:.2f} times what the profile's curves say "
        f"(quartiles {miss[0]:.2f} to {miss[2]:.2f}), and the surroundings moved {drift[1]:.2f} times as much "
        f"({drift[0]:.2f} to {drift[2]:.2f}); planning anew starts from {SEEN_MISS:g} and {SEEN_DRIFT:g}."
    )


def planned_table(rows: list[dict]) -> Iterator[str]:
    yield "| profile | wanted | stays with its plan | may plan anew | runs that did |"
    yield "|---|---|---|---|---|"
    for profile in PROFILES:
        for speed in MAIN.speeds:
            here = [row for row in rows if (row["profile"], row["speed"]) == (profile, speed)]
            stayed, anew = ([row for row in here if row["replan"] is replan] for replan in (False, True))
            did = f"{sum(row['planned_anew'] > 0 for row in anew)} of {len(anew)}"
            yield f"| {profile} | {speed:g}x | {mean_db(stayed):.1f} dB | {mean_db(anew):.1f} dB | {did} |"


def table(result: dict) -> list[str]:
    """Both tables and what was seen on the way."""
    clips = len({row["clip"] for row in result["rows"]})
    where = f"{clips} tuning clip{'s' * (clips > 1)}, {result['machine']['device']}"
    return [
        f"**Plans of {FEW.steps} steps**, cfg 1, masks of 20%: the error they have and the one foretold ({where}):",
        "",
        *few_table(_kind(result, "few")),
        "",
        f"**Planning anew on the way**, {MAIN.steps} steps, cfg {MAIN.cfg:g}, masks of 20% ({where}):",
        "",
        *planned_table(_kind(result, "planned")),
        "",
        watched_line(_kind(result, "watched")),
    ]


def both(index: int) -> list[dict]:
    """All rows of a clip."""
    return few(index) + planned(index)


def order(row: dict) -> tuple:
    """Where a row stands in the file."""
    return row["clip"], row["kind"]


if __name__ == "__main__":
    compare_all(__doc__.split("\n")[0], both, lambda clips: [(i,) for i in range(clips)], order, table)
