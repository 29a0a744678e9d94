"""Guidance reuse: one stream of an evaluation is computed, the others are derived from it by kept differences.

The streams of an evaluation (cond, uncond, those of skip-layer guidance) see the same latent and differ by a prompt;
what a prompt changes moves more slowly than the predictions themselves. At evaluations that compute several streams
their differences are kept, at output level, and forecast as predictions are. Which stream is the anchor, the one that
is computed, may change from evaluation to evaluation: a difference between any two follows from those to the base.

MixCache computes cond. So does this where cond is among the first call's streams; a host that calls them one by one may
begin with uncond (ComfyUI does, short of memory), whose answer cannot wait for cond's. Then uncond is computed and cond
derived, and guided predictions miss by cfg times what the difference does rather than by cfg - 1 times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from .forecast import Forecast, Seen

Streams = tuple[Hashable, ...]


class Guidance:
    """Differences of streams to a base stream, the first one seen; rows are patches ``[rows, C, N, 2, 2]``, float32.

    Args:
        history: makes the forecast of one difference.
        preferred: the stream to compute where a call offers it; else the first of the call.
    """

    def __init__(self, history: Callable[[], Forecast], preferred: Hashable = None):
        self._history, self._preferred = history, preferred
        self.clear()

    def clear(self) -> None:
        """Let everything go."""
        self._base: Hashable = None
        self._differences: dict[Hashable, Forecast] = {}
        self._now: dict[Hashable, Tensor] = {}
        self._selected: dict[Hashable, Tensor | None] = {}
        self._waiting: list[Hashable] = []

    @property
    def bytes(self) -> int:
        """Bytes held, this evaluation's predictions included."""
        now = sum(rows.numel() * rows.element_size() for rows in self._now.values())
        return now + sum(difference.bytes for difference in self._differences.values())

    @property
    def seen(self) -> Seen | None:
        """What the last record showed of the first difference."""
        return next((difference.seen for difference in self._differences.values()), None)

    def begin(self) -> None:
        """A new evaluation."""
        if len(self._now) > 1 and self._base not in self._now:
            self.clear()  # the base has left the run
        self._now.clear()
        self._selected.clear()
        self._waiting.clear()

    def record(self, position: float, stream: Hashable, rows: Tensor, selection: Tensor | None) -> bool:
        """Take in a stream's computed rows; whether that renewed a difference.

        Args:
            position: of the evaluation along the schedule.
            selection: the N tokens computed (sorted indices), None for all.
        """
        if self._base is None:
            self._base = stream
        self._now[stream], self._selected[stream] = rows, selection
        self._waiting.append(stream)
        base, renewed = self._now.get(self._base), False
        if base is None:
            return False
        for other in self._waiting:
            # where one stream of an evaluation had to be computed in full and another was not, they cannot be compared
            if other == self._base or self._now[other].shape != base.shape:
                continue
            if other not in self._differences:
                if selection is not None:
                    continue
                self._differences[other] = self._history()
            self._differences[other].record(position, self._now[other] - base, selection)
            renewed = True
        self._waiting.clear()
        return renewed

    def why_not(self, streams: Streams) -> str:
        """Why these streams cannot be derived from one another, in plain words, or empty."""
        if not self._differences:
            return "there is one stream, so no guidance to reuse"
        if not all(stream == self._base or stream in self._differences for stream in streams):
            return "a stream whose difference to the others is not kept yet"
        return ""

    @property
    def computed(self) -> bool:
        """Whether a stream of this evaluation was computed already, so that no other need be."""
        return bool(self._now)

    def anchor(self, streams: Streams) -> int:
        """Index of the stream to compute among those of an evaluation's first call."""
        return streams.index(self._preferred) if self._preferred in streams else 0

    def derive(self, position: float, stream: Hashable) -> tuple[Tensor, Tensor | None]:
        """A stream's prediction from this evaluation's computed one (a new tensor), and which tokens it holds: those
        that were computed, None for all.

        Raises:
            RuntimeError: none is computed yet.
        """
        anchor = next((s for s in self._now if not self.why_not((s,))), None)
        if anchor is None:
            raise RuntimeError("guidance is derived from a computed stream, and this evaluation has none")
        rows, selection = self._now[anchor].clone(), self._selected[anchor]
        for other, sign in ((anchor, -1), (stream, 1)):
            if other != self._base:
                difference = self._differences[other].predict(position)
                rows.add_(difference if selection is None else difference.index_select(2, selection), alpha=sign)
        return rows, selection
