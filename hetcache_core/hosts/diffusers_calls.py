"""Which run, which evaluation and which stream a call of a diffusers model belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor

SEVERAL = "the model is called on several latents a step, as with windows that slide along the clip"


class CallName(StateManager):
    """Where diffusers puts the name of the call (cond, uncond); the state itself is the engine's."""

    def __init__(self):
        super().__init__(BaseState)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Take a context: its bare name in older versions, an object with a name in newer ones, None at its end."""
        self.name = getattr(context, "name", context)

    def reset(self, *args: object, **kwargs: object) -> None:
        self.name = None


@dataclass(frozen=True)
class Schedule:
    """The part of a scheduler's schedule one transformer serves.

    Args:
        timesteps: of its evaluations, ``[n]``. sigmas: their noise levels and the one after the last, ``[n + 1]``.
    """

    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()

    @classmethod
    def starting_at(cls, timestep: float, scheduler: Any, last: float = 0.0) -> Schedule:
        """What is left of a scheduler's schedule from a timestep on; empty where that timestep is not in it.

        Args:
            timestep: of the first call.
            scheduler: with ``timesteps`` and ``sigmas``, or None.
            last: timesteps below it belong to another transformer (Wan 2.2's boundary).
        """
        timesteps, sigmas = (getattr(scheduler, name, None) for name in ("timesteps", "sigmas"))
        if timesteps is None or sigmas is None or len(sigmas) < len(timesteps):
            return cls()
        timesteps, sigmas = (torch.as_tensor(values).tolist() for values in (timesteps, sigmas))
        first = next((i for i, t in enumerate(timesteps) if _same(t, timestep)), None)
        if first is None:
            return cls()
        end = next((i for i, t in enumerate(timesteps) if i > first and t < last), len(timesteps))
        levels = [*sigmas[: len(timesteps)], 0.0]
        return cls(tuple(map(float, timesteps[first:end])), tuple(map(float, levels[first : end + 1])))

    def has(self, evaluation: int, timestep: float) -> bool:
        """Whether an evaluation is at this timestep."""
        return evaluation < len(self.timesteps) and _same(self.timesteps[evaluation], timestep)


def boundary(source: Any, module: torch.nn.Module) -> float:
    """Timestep below which another transformer takes over, where a pipeline has two (Wan 2.2) and this is the first."""
    config = getattr(source, "config", {})
    ratio = config.get("boundary_ratio") if getattr(source, "transformer_2", None) is not None else None
    if ratio is None or getattr(source, "transformer", None) is not module:
        return 0.0
    return ratio * source.scheduler.config.num_train_timesteps


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 0.5  # models are called with rounded timesteps


@dataclass(frozen=True)
class Place:
    """Where a call belongs.

    Args:
        evaluation: in the schedule. stream: its name.
        begins: whether a run begins with it.
        doubtful: whether it may be another latent of the same step rather than a run that begins anew.
        several: whether it is another latent of the same step.
    """

    evaluation: int
    stream: str
    begins: bool = False
    doubtful: bool = False
    several: bool = False


class Calls:
    """Follows a model's calls along a schedule.

    All streams of an evaluation see the same latent. A pipeline that does not name its calls has them told apart by
    their order, as many as the first evaluation had, and more where guidance starts later. What does not follow the
    schedule begins a new run; what asks about another latent at the same timestep does so after the first evaluation,
    where a run that was broken off may begin anew, and later on is a window of a longer clip.

    Args:
        streams: calls a step, until the first evaluation has shown how many there are.
    """

    def __init__(self, streams: int):
        self._streams = streams
        self.schedule = Schedule()  # of the run; set by whoever begins it
        self.reset()

    def reset(self) -> None:
        """The run is over."""
        self.schedule, self._evaluation, self._timestep = Schedule(), 0, None
        self._sample: Tensor | None = None
        self._served: list[str] = []
        self._expected, self._several = self._streams, False

    def place(self, sample: Tensor, timestep: float, name: str | None) -> Place:
        """Where a call belongs; after one that begins a run, the schedule is empty until it is set.

        Args:
            sample: the noisy latent. timestep: its first call's value. name: of the stream, where the pipeline says it.
        """
        if not self._alike(sample):
            return self._begin(sample, timestep, name)
        before, repeated = self._evaluation, timestep == self._timestep
        another = repeated and not name and sample is not self._sample and not torch.equal(sample, self._sample)
        served = another or (name in self._served if name else len(self._served) >= self._expected)
        if repeated and (self._several or not served):
            return self._take(name)
        if before == 0:
            self._expected = len(self._served)
        if self.schedule.has(before + 1, timestep) or not self.schedule.timesteps:
            self._evaluation, self._timestep, self._sample, self._served = before + 1, timestep, sample, []
            return self._take(name)
        if repeated and not name and not another:  # guidance starts here
            self._expected += 1
            return self._take(name)
        return self._begin(sample, timestep, name, doubtful=repeated and before == 0, several=repeated and before > 0)

    def _alike(self, sample: Tensor) -> bool:
        old = self._sample
        return old is not None and (sample.shape, sample.dtype, sample.device) == (old.shape, old.dtype, old.device)

    def _begin(self, sample: Tensor, timestep: float, name: str | None, **why: bool) -> Place:
        self.reset()
        self._evaluation, self._timestep, self._sample = 0, timestep, sample
        self._several = why.get("several", False)
        return self._take(name, begins=True, **why)

    def _take(self, name: str | None, **why: bool) -> Place:
        stream = name or f"call {len(self._served)}"
        self._served.append(stream)
        return Place(self._evaluation, stream, **why)
