"""Whether work that goes on side by side, the host's and that of a card's streams, waits for what it needs.

Every operation has a place on the time line of who does it. One line knows another up to where it has waited for it;
what it reads must have been written, and what it overwrites read, by then. Memory of a card belongs to the stream that
asked for it: others that use it have to say so, or it is given away too early.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager

import torch

Place = tuple[bool, int]  # on the card, address


class Line:
    """The host's work, or a stream's, one thing after another."""

    def __init__(self, name: str):
        self.name, self.time, self._known = name, 0, {}

    def now(self) -> dict[Line, int]:
        """How far this line is, and those it has waited for."""
        return {**self._known, self: self.time}

    def wait(self, moment: dict[Line, int]) -> None:
        for line, time in moment.items():
            self._known[line] = max(time, self._known.get(line, 0))

    def knows(self, line: Line, time: int) -> bool:
        return line is self or self._known.get(line, 0) >= time


class Event:
    """A mark on a stream's line."""

    ticks = 0.0  # for time taken by events

    def __init__(self, enable_timing: bool = False):
        self.timing = enable_timing

    def record(self, stream: Stream | None = None):
        Event.ticks += 1.0
        self.at, self.moment = Event.ticks, (stream or Stream.current).now()

    def elapsed_time(self, end: Event) -> float:
        assert self.timing and end.timing
        return end.at - self.at

    def query(self) -> bool:
        return True

    def synchronize(self):
        Races.current.host.wait(self.moment)


class Stream(Line):
    """As torch's streams."""

    current: Stream

    def __init__(self, device=None, name: str = "a stream of its own"):
        super().__init__(name)

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.wait(event.moment)

    def wait_stream(self, other: Stream) -> None:
        self.wait(other.now())


@contextmanager
def stream(chosen: Stream):
    """As `torch.cuda.stream`."""
    before, Stream.current = Stream.current, chosen
    try:
        yield
    finally:
        Stream.current = before


class Races:
    """Looks at every operation. Tensors are told apart by where they lie: ``inner`` of a card's tensors, themselves of
    the host's."""

    current: Races

    def __init__(self):
        self.host, Stream.current = Line("the host"), Stream(name="the computing stream")
        self.streams = {Stream.current}  # that did something
        self._written: dict[Place, tuple[Line, int]] = {}
        self._read: dict[Place, dict[Line, int]] = {}
        self._owner: dict[Place, tuple[Line, set[Line]]] = {}  # and other streams whose use was told
        self._foreign: list[tuple[Line, set[Line], str]] = []
        self._pinned: set[Place] = set()
        Races.current = self

    def begin(self, line: Line, reads: Iterable[torch.Tensor], writes: Iterable[torch.Tensor]) -> None:
        """An operation on a line, before it is done.

        Raises:
            RuntimeError: it does not wait for what it needs.
        """
        if line is not self.host:
            line.wait(self.host.now())  # it is started from there
            self.streams.add(line)
        line.time += 1
        writes = set(map(_place, writes))
        for place in {*map(_place, reads), *writes}:
            writer, time = self._written.get(place, (line, 0))
            if not line.knows(writer, time):
                raise RuntimeError(f"{line.name} uses what {writer.name} may not have written yet")
            owner, told = self._owner.get(place, (line, set()))
            if owner is not line and line is not self.host:
                self._foreign.append((line, told, f"{line.name} uses memory of {owner.name}"))
            if place not in writes:
                self._read.setdefault(place, {})[line] = line.time
        for place in writes:
            for reader, time in self._read.pop(place, {}).items():
                if not line.knows(reader, time):
                    raise RuntimeError(f"{line.name} overwrites what {reader.name} may not have read yet")
            self._written[place] = line, line.time

    def made(self, line: Line, tensor: torch.Tensor, pinned: bool) -> None:
        """A new tensor, written by an operation, in page-locked memory or not."""
        place = _place(tensor)
        self._written[place] = line, line.time
        self._read.pop(place, None)
        if place[0]:
            self._owner[place] = line, set()
        (self._pinned.add if pinned else self._pinned.discard)(place)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return _place(tensor) in self._pinned

    def told(self, tensor: torch.Tensor, line: Line) -> None:
        """`record_stream`."""
        if (owner := self._owner.get(_place(tensor))) is not None:
            owner[1].add(line)

    @property
    def untold(self) -> set[str]:
        """Uses of another stream's memory that nobody was told of."""
        return {what for line, told, what in self._foreign if line not in told}


def _place(tensor: torch.Tensor) -> Place:
    there = tensor.device.type != "cpu"
    return there, (tensor.inner if there else tensor).untyped_storage().data_ptr()
