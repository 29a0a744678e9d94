"""What happened in a run and why: per evaluation and in total, as text, JSON and a picture."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .block_profile import BlockProfile
from .block_scores import BlockScores
from .costs import Costs
from .device import Stopwatch
from .error_model import BLOCKS, FULL, NAMES, PARTIAL, REUSE
from .plan import Plan
from .policy import CachePolicy
from .profile import ErrorProfile
from .signals import ChangeRecorder
from .tiers import MemoryTier
from .tokens import TokenClasses, TokenGrid


@dataclass
class EvaluationRecord:
    """One evaluation: what was done, why, for how many tokens, how long, holding how much.

    ``streams`` counts what its model calls answered, two with guidance; ``seconds`` sums those calls; of them,
    ``storing_seconds`` went into storing context and deltas on a full evaluation, which the stock model need not do;
    ``context_bytes`` is the context memory, ``forecast_bytes`` the kept predictions, ``block_bytes`` the background
    blocks' deltas.
    """

    index: int
    sigma: float
    decision: str
    reason: str
    tokens: int
    streams: int = 0
    seconds: float = 0.0
    storing_seconds: float = 0.0
    context_bytes: int = 0
    forecast_bytes: int = 0
    block_bytes: int = 0


class RunStats:
    """Statistics of one sampling run. Reading them never fails, also mid-run or after an interrupt."""

    def __init__(self, policy: CachePolicy, grid: TokenGrid, classes: TokenClasses | None):
        self.policy = policy
        self.classes = classes
        self.grid = grid.shape
        self.note = ""
        self.left_to_host = False  # altogether, so that there will be no records
        self.predicted_speed: float | None = 1.0
        self.warnings: list[str] = []
        self.costs = Costs(partial=1.0)
        self.planned = ""
        self.tier = ""
        self.selected_tokens = 0
        self.planned_context_bytes = 0
        self.planned_block_bytes = 0
        self.preparation_seconds = 0.0
        self.block_scores: BlockScores | None = None
        self.remembered: torch.Tensor | None = None  # token indices whose keys and values are kept
        self.last_selection: torch.Tensor | None = None  # what the last partial evaluation computed
        self._records: dict[int, EvaluationRecord] = {}
        self._watches: list[tuple[int, str, Stopwatch]] = []  # evaluation, field it adds to
        self._changes: dict[Hashable, tuple[ChangeRecorder, ChangeRecorder]] = {}

    def begin(self, plan: Plan | None, tier: MemoryTier, selected: int, note: str) -> None:
        """Note what was planned; no plan where the method decides online."""
        self.planned = plan.decisions if plan else ""
        self.predicted_speed = plan.predicted_speed if plan else None
        self.tier, self.selected_tokens, self.note = str(tier), selected, note

    def replan(self, plan: Plan, reason: str) -> None:
        """Note that the rest is planned otherwise from now on."""
        self.planned, self.predicted_speed = plan.decisions, plan.predicted_speed
        self.note = "; ".join(text for text in (self.note, reason) if text)

    def warn(self, text: str) -> bool:
        """Note that something went wrong; False if that is known already."""
        if text in self.warnings:
            return False
        self.warnings.append(text)
        return True

    def add(
        self,
        index: int,
        sigma: float,
        decision: str,
        reason: str,
        tokens: int,
        watch: Stopwatch,
        context: int,
        kept: int,
        deltas: int = 0,
        storing: Sequence[Stopwatch] = (),
        streams: int = 1,
    ) -> None:
        """Note one model call; calls of one evaluation add up, and the dearest decision among them names it."""
        watch.stop()
        record = self._records.setdefault(index, EvaluationRecord(index, sigma, decision, reason, tokens))
        dearest = list(NAMES)
        if dearest.index(decision) < dearest.index(record.decision):
            record.decision, record.reason, record.tokens = decision, reason, tokens
        record.streams += streams
        record.context_bytes = max(record.context_bytes, context)
        record.forecast_bytes = max(record.forecast_bytes, kept)
        record.block_bytes = max(record.block_bytes, deltas)
        self._watches.append((index, "seconds", watch))
        self._watches += [(index, "storing_seconds", stored) for stored in storing]

    def measure(self, stream: Hashable, patches: torch.Tensor) -> None:
        """Take in a prediction of a run that measures changes, patches ``[rows, C, L, 2, 2]``."""
        if self.classes is None or not len(self.classes.context):
            return
        if stream not in self._changes:
            generative = self.classes.generative.nonzero().flatten()
            self._changes[stream] = ChangeRecorder(generative), ChangeRecorder(self.classes.context)
        for recorder in self._changes[stream]:
            recorder.add(patches)

    def profile(self, name: str, like: ErrorProfile) -> ErrorProfile:
        """The error profile measured by a run with ``method="measure"``, averaged over its streams.

        Args:
            name: of the model.
            like: where weights, staleness, spill, costs and warm-up are taken from; one run cannot measure them.

        Raises:
            ValueError: nothing was measured: another method, no mask, or fewer than four evaluations.
        """
        longest = max((len(pair[0].first) for pair in self._changes.values()), default=0)
        throughout = [pair for pair in self._changes.values() if len(pair[0].first) == longest]  # no passing prompt
        edit, context = ([pair[i] for pair in throughout] for i in (0, 1))
        if not edit or len(edit[0].second) < 2:
            raise ValueError("no changes were measured; run at least 4 evaluations with method 'measure' and a mask")

        def mean(recorders, field):
            return tuple(float(v) for v in np.mean([getattr(r, field) for r in recorders], axis=0))

        return like.measured(
            name, [r.sigma for r in self.records], first=mean(edit, "first"), second=mean(edit, "second"),
            context_first=mean(context, "first"), context_second=mean(context, "second"),
        )  # fmt: skip

    def block_profile(self, name: str, threshold: float | None = None, share: float = 0.7) -> BlockProfile:
        """The block profile measured by a run with ``method="profile"``; see :meth:`BlockScores.profile`.

        Raises:
            ValueError: nothing was measured, and why.
        """
        if self.block_scores is None:
            asked = self.note if self.policy.method == "profile" else "use method 'profile'"
            raise ValueError(f"no blocks were measured: {self.warnings[0] if self.warnings else asked}")
        return self.block_scores.profile(name, threshold, share)

    @property
    def records(self) -> list[EvaluationRecord]:
        """Every evaluation so far, in order."""
        self._read(self._watches)
        self._watches.clear()
        return [self._records[i] for i in sorted(self._records)]

    @property
    def count(self) -> int:
        """How many evaluations were answered, timed or not."""
        return len(self._records)

    def so_far(self) -> RunStats:
        """These statistics without the evaluations a device still works on: reading them never waits for it."""
        working = [entry for entry in self._watches if not entry[-1].finished]
        self._watches, done = working, [entry for entry in self._watches if entry not in working]
        self._read(done)
        view, open_ = copy.copy(self), {index for index, *_ in working}
        view._watches, view._records = [], {i: r for i, r in self._records.items() if i not in open_}
        return view

    def _read(self, watches: list[tuple[int, str, Stopwatch]]) -> None:
        for index, field, watch in watches:
            setattr(self._records[index], field, getattr(self._records[index], field) + watch.seconds)

    @property
    def decisions(self) -> str:
        """One letter an evaluation: F(ull), P(artial), R(euse), B (background blocks reused), G (one side of guidance
        computed), H (that, of a partial one)."""
        return "".join(r.decision for r in self.records)

    @property
    def seconds(self) -> float:
        """Wall seconds of all model calls, deciding, selecting and forecasting included."""
        return sum(r.seconds for r in self.records)

    def seconds_of(self, decision: str) -> float:
        """Median seconds of an evaluation of this kind, 0 if there was none.

        Of a full one, without what went into storing context, which the stock model need not do. The run's first
        evaluation warms caches and kernels up; it counts only when it is the only one.
        """
        if decision == FULL:
            times = [r.seconds - r.storing_seconds for r in self._full()]
        else:
            times = [r.seconds for r in self.records if r.decision == decision]
        return statistics.median(times) if times else 0.0

    @property
    def speed_is_estimated(self) -> bool:
        """Whether some evaluation's stock price was not timed: the run's only full one was its first, which also warms
        up, or there was none of as many streams, where guidance comes or goes."""
        timed = {r.streams for r in self._full()}
        return self._cold or (bool(timed) and any(r.streams not in timed for r in self.records))

    @property
    def speed(self) -> float:
        """Measured speed-up: all evaluations at the price of this run's own full ones, over what was spent.

        Each at the price of those that answered as many streams, so that what a guider saves is not claimed; where none
        did, in proportion. Where no fair full evaluation was timed, its price follows from the partial ones' and the
        cost model.
        """
        if not self.decisions.strip(FULL):
            return 1.0
        records, seconds = self.records, self.seconds
        if self._cold:
            (first,) = self._full()
            full = self.seconds_of(FULL)
            partial = statistics.median(r.seconds / r.streams for r in records if r.decision == PARTIAL)
            fair = min(full, partial * first.streams / self.costs.partial)
            stock, seconds = sum(fair * r.streams / first.streams for r in records), seconds - full + fair
        else:
            stock = sum(self._stock_seconds(r.streams) for r in records)
        return stock / seconds if seconds > 0 else 1.0

    @property
    def _cold(self) -> bool:
        """Whether the run's only full evaluation was its first, beside partial ones, which tell what it should cost."""
        done = self.decisions
        return PARTIAL in done and done.count(FULL) == 1

    def _full(self) -> list[EvaluationRecord]:
        """Full evaluations, without the first if there are others: it warms caches and kernels up."""
        full = [r for r in self.records if r.decision == FULL]
        return full[1:] or full

    def _stock_seconds(self, streams: int) -> float:
        """Seconds of a full evaluation of so many streams, without storing."""
        full = self._full()
        if not full:
            return 0.0
        like = min((r.streams for r in full), key=lambda count: abs(count - streams))
        times = [r.seconds - r.storing_seconds for r in full if r.streams == like]
        return statistics.median(times) * streams / like

    @property
    def mask_fraction(self) -> float:
        """Share of tokens that are generative, 0 without a mask."""
        return self.classes.mask_fraction if self.classes is not None else 0.0

    @property
    def peak_context_bytes(self) -> int:
        """Most bytes the context memory held."""
        return max((r.context_bytes for r in self.records), default=0)

    @property
    def peak_forecast_bytes(self) -> int:
        """Most bytes of kept predictions."""
        return max((r.forecast_bytes for r in self.records), default=0)

    @property
    def peak_block_bytes(self) -> int:
        """Most bytes of background blocks' deltas."""
        return max((r.block_bytes for r in self.records), default=0)

    def outlook(self) -> str:
        """What is planned, in one line, known before anything is sampled."""
        if self.predicted_speed is None:
            return f"mask {self.mask_fraction:.0%}: full, partial or reuse decided online"
        return (
            f"{len(self.planned)} evaluations, mask {self.mask_fraction:.0%}: {_counts(self.planned)}, predicted "
            f"{self.predicted_speed:.2f}x, context memory {self.planned_context_bytes / 2**20:.0f} MB"
            + (f", block deltas {self.planned_block_bytes / 2**20:.0f} MB" if self.planned_block_bytes else "")
        )

    def summary(self) -> str:
        """A few lines for a person."""
        done = self.decisions
        if self.left_to_host:
            return f"{len(self.planned)} evaluations, all left to the host\nnote: {self.note}"
        lines = [
            f"{len(done)} evaluations, mask {self.mask_fraction:.0%}: {_counts(done)}",
            f"speed {self.speed:.2f}x {'estimated' if self.speed_is_estimated else 'measured'}, "
            + ("decided online; " if self.predicted_speed is None else f"{self.predicted_speed:.2f}x predicted; ")
            + f"{self.seconds:.1f} s in the model",
            f"context memory {self.peak_context_bytes / 2**20:.1f} MB ({self.tier or 'none'}), "
            f"predictions {self.peak_forecast_bytes / 2**20:.1f} MB"
            + (f", block deltas {self.peak_block_bytes / 2**20:.1f} MB" if self.peak_block_bytes else ""),
        ]
        missed = {r.reason for r in self.records if self.planned and r.decision != self.planned[r.index : r.index + 1]}
        notes = dict.fromkeys([self.note, *self.warnings, *sorted(missed)])
        lines += [f"note: {text}" for text in notes if text]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Everything, ready for JSON."""
        return {
            "policy": json.loads(self.policy.to_json()),
            "grid": list(self.grid),
            "mask_fraction": self.mask_fraction,
            "selected_tokens": self.selected_tokens,
            "planned": self.planned,
            "decisions": self.decisions,
            "predicted_speed": self.predicted_speed,
            "speed": self.speed,
            "seconds": self.seconds,
            "seconds_full": self.seconds_of(FULL),
            "seconds_partial": self.seconds_of(PARTIAL),
            "seconds_reuse": self.seconds_of(REUSE),
            "seconds_blocks": self.seconds_of(BLOCKS),
            "preparation_seconds": self.preparation_seconds,
            "context_memory": self.tier,
            "planned_context_bytes": self.planned_context_bytes,
            "peak_context_bytes": self.peak_context_bytes,
            "peak_forecast_bytes": self.peak_forecast_bytes,
            "peak_block_bytes": self.peak_block_bytes,
            "note": self.note,
            "warnings": self.warnings,
            "evaluations": [asdict(r) for r in self.records],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def picture(self, frame: np.ndarray | None = None) -> np.ndarray:
        """Timeline of decisions over the token map of the middle frame, uint8 ``[H, W, 3]`` (needs Pillow).

        Args:
            frame: the clip's middle frame, uint8 ``[h, w, 3]``, to draw the token map on.
        """
        from .picture import draw

        return draw(self, frame)


def _counts(decisions: str) -> str:
    """How many of each kind, those that every run may have first."""
    kinds = [FULL, PARTIAL, REUSE, *(k for k in NAMES if k not in (FULL, PARTIAL, REUSE) and k in decisions)]
    return ", ".join(f"{decisions.count(k)} {NAMES[k]}" for k in kinds)
