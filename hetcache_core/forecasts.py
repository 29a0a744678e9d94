"""Everything a run keeps of its predictions: a history for each stream, and the differences between streams."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .forecast import Forecast, to_v, to_x0
from .guidance import Guidance, Streams
from .packing import from_patches, to_patches, unpack


class Forecasts(dict[Hashable, Forecast]):
    """Histories of all streams of a run, in the order they were first seen.

    Args:
        order, damping, fit_on, watch: as :class:`Forecast` takes them.
        quantity: what is forecast: ``v`` (the prediction itself) or ``x0``.
        differences: whether the differences between streams are kept too, for guidance to be reused.
        conditional: the stream of the positive prompt, where it is known.
    """

    def __init__(
        self,
        order: int,
        damping: float | None,
        fit_on: Tensor,
        quantity: str = "v",
        watch: bool = False,
        differences: bool = False,
        conditional: Hashable = None,
    ):
        super().__init__()
        self._settings, self._quantity, self._conditional = (order, damping, fit_on, watch), quantity, conditional
        self.guidance = Guidance(lambda: Forecast(*self._settings), conditional) if differences else None
        self._present: dict[Hashable, Forecast] = self  # those of the last evaluation computed
        self._full_at = 0.0  # the last full evaluation's position

    @property
    def bytes(self) -> int:
        """Bytes held."""
        held = sum(forecast.bytes for forecast in self.values())
        return held + (self.guidance.bytes if self.guidance else 0)

    @property
    def watched(self) -> Hashable | None:
        """The stream whose change speaks for all: the conditional one where it is known, else the first.

        The same for all calls of an evaluation, whichever comes first; a stream that has left the run (a prompt for
        some of the steps) speaks no longer.
        """
        return self._conditional if self._conditional in self._present else next(iter(self._present), None)

    def lacking(self, streams: Streams) -> str:
        """Why some of these streams cannot be forecast, or empty."""
        if not all(stream in self for stream in streams):
            return "a stream not seen before"
        if any(self[stream].position < self._full_at for stream in streams):
            return "a stream that was away when all was computed"
        return ""

    def begin(self, full_at: float | None) -> None:
        """A new evaluation, with its position if it is a full one."""
        self._full_at = self._full_at if full_at is None else full_at
        newest = max((forecast.position for forecast in self.values()), default=None)
        self._present = {s: forecast for s, forecast in self.items() if forecast.position == newest} or self
        if self.guidance:
            self.guidance.begin()

    def clear(self) -> None:
        """Let everything go."""
        super().clear()
        self._present = self
        if self.guidance:
            self.guidance.clear()

    def record(
        self, streams: Streams, sample: Tensor, patches: Tensor, selection: Tensor | None, position: float, sigma: float
    ) -> bool:
        """Take in one call's prediction; whether that renewed a difference between streams.

        Args:
            streams: of the call; the batch is their rows in equal chunks.
            sample: the noisy latent, ``[B, C, T, H, W]``.
            patches: the prediction, ``[B, C, N, 2, 2]`` in float32.
            selection: the N tokens computed (sorted indices), None for all.
            position, sigma: of the evaluation.
        """
        if self._quantity == "x0":
            noisy = to_patches(sample[:, : patches.shape[1]]).float()
            noisy = noisy if selection is None else noisy.index_select(2, selection)
            patches = to_x0(patches, noisy, sigma)
        renewed = False
        for stream, rows in zip(streams, patches.chunk(len(streams)), strict=True):
            if stream not in self:
                self[stream] = Forecast(*self._settings)
            self[stream].record(position, rows, selection)
            if self.guidance:
                renewed |= self.guidance.record(position, stream, rows, selection)
        return renewed

    def predict(self, streams: Streams, sample: Tensor, position: float, sigma: float) -> Tensor:
        """Forecast of a call's prediction, ``[B, C, T, H, W]`` in the sample's dtype."""
        rows = torch.cat([self[stream].predict(position) for stream in streams])
        return self._to_latent(rows, sample, sigma)

    def guided(
        self,
        streams: Streams,
        sample: Tensor,
        compute: Callable[[int], Tensor],
        position: float,
        sigma: float,
        selection: Tensor | None = None,
    ) -> Tensor:
        """One call's prediction with one stream of the evaluation computed and the others derived from it.

        Args:
            streams, sample, selection, position, sigma: as in :meth:`record`.
            compute: ``compute(i)`` runs the model on ``streams[i]`` alone, on the selection where there is one (then
                its answer is packed).

        Returns:
            ``[B, C, T, H, W]``.
        """
        samples, anchor, outputs = sample.chunk(len(streams)), None, []
        if not self.guidance.computed:
            anchor = self.guidance.anchor(streams)
            output = compute(anchor)
            patches = (to_patches(output) if selection is None else unpack(output)).float()
            if not torch.isfinite(patches).all():
                raise ValueError("the stream computed was not finite")
            self.record(streams[anchor : anchor + 1], samples[anchor], patches, selection, position, sigma)
            if selection is not None:
                output = self.predict(streams[anchor : anchor + 1], samples[anchor], position, sigma)
            outputs.append(output)
        for i, stream in enumerate(streams):
            if i == anchor:
                continue
            rows, derived = self.guidance.derive(position, stream)
            self[stream].record(position, rows, derived)  # not computed, yet renewed by what was
            whole = rows if derived is None else self[stream].predict(position)
            outputs.insert(i, self._to_latent(whole, samples[i], sigma))
        return torch.cat(outputs)

    def _to_latent(self, rows: Tensor, sample: Tensor, sigma: float) -> Tensor:
        prediction = from_patches(rows, *sample.shape[-3:])
        if self._quantity == "x0":
            prediction = to_v(prediction, sample[:, : prediction.shape[1]].float(), sigma)
        return prediction.to(sample.dtype)
