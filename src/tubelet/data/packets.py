"""Which packets of a video hold a picture that is wanted: told from their times, before any of them is decoded.

A picture that is not wanted and that no other refers to need not be decoded. The decoder knows which those are
(it is told to leave them out, packet by packet); what is decided here is which pictures are wanted. Packets come in
the order of decoding. Once one has a decoding time past a moment, every picture displayed up to that moment has
come by, so a few packets of looking ahead settle what is on display then.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet

MOST_AHEAD = 64
"""Packets held at most. No codec moves a picture further: beyond, the times are at fault, and a packet is decoded."""


class Doubt(Exception):
    """Pictures were left out on the word of times that have proved doubtful: to be done again with all of them."""


class Packets:
    """Packets in the order of decoding, each with whether its picture is wanted.

    Everything is wanted until `want` says what is, and where the times cannot be trusted: missing, twice the same,
    decoding after display, running backwards.

    Args:
        source: the packets from where the file stands.
        trusted: whether their times may be believed at all.
    """

    def __init__(self, source: Iterator[Packet], trusted: bool) -> None:
        self.source, self.trusted = source, trusted
        self.ended = False
        self.moments: Sequence[float] | None = None
        self.ahead: deque[Packet] = deque()
        self.starts: list[int] = []
        """Of the pictures that came by, rising."""
        self.reached = -inf
        """Pictures that start at this time or earlier have all come by."""
        self.left_out = False

    def want(self, moments: Sequence[float]) -> None:
        """From here on, only what is on display at these rising moments is wanted, in ticks of the stream."""
        self.moments = moments

    def __iter__(self) -> Iterator[tuple[Packet, bool]]:
        while self.ahead or self._look_ahead():
            if self._is_over():
                return
            wanted = self._is_wanted(self.ahead[0])
            self.left_out |= not wanted
            yield self.ahead.popleft(), wanted

    def answer(self, moment: float) -> int | None:
        """The start of the picture on display at `moment`, or None while that is not certain. Moments rise."""
        start = self._on_display(moment)
        if start is not None:
            del self.starts[: bisect_left(self.starts, start)]
        return start

    def is_after(self, start: int) -> bool:
        """Whether a picture came by that starts later."""
        return bool(self.starts) and self.starts[-1] > start

    @property
    def first(self) -> Packet | None:
        """The packet that comes next."""
        return self.ahead[0] if self.ahead or self._look_ahead() else None

    def doubt(self) -> None:
        """Something is wrong with the file: from here on everything is decoded.

        Raises:
            Doubt: pictures were left out already.
        """
        if self.left_out:
            raise Doubt
        self.trusted = False

    def _on_display(self, moment: float) -> int | None:
        row = bisect_right(self.starts, moment)
        return self.starts[row - 1] if row and self.trusted and self.reached > moment else None

    def _is_wanted(self, packet: Packet) -> bool:
        while self.trusted and self.moments is not None:
            if packet.is_discard:  # an edit list cuts it off
                return False
            assert packet.pts is not None
            row = bisect_left(self.moments, packet.pts)
            if row == len(self.moments):
                return False
            moment = self.moments[row]
            if packet.pts not in self.starts[bisect_right(self.starts, moment) - 1 :][:1]:
                return False  # a later one has taken its place by then
            if self.reached > moment or len(self.ahead) >= MOST_AHEAD or not self._look_ahead():
                return True
        return True

    def _is_over(self) -> bool:
        """Whether everything up to what is on display at the last moment has been handed out."""
        if self.moments is None:
            return False
        last = self._on_display(self.moments[-1])
        return last is not None and all(packet.pts is not None and packet.pts > last for packet in self.ahead)

    def _look_ahead(self) -> bool:
        """Takes one more packet from the file. False at its end."""
        packet = next(self.source, None)
        if packet is None:
            self.ended, self.reached = True, inf
            return False
        self.ahead.append(packet)
        if self.trusted and not packet.is_discard:
            start, decoded = packet.pts, self.reached if packet.dts is None else packet.dts
            row = 0 if start is None else bisect_left(self.starts, start)
            in_order = start is not None and self.reached <= decoded <= start
            if start is None or not in_order or start in self.starts[row : row + 1] or packet.is_corrupt:
                self.doubt()
            else:
                self.starts.insert(row, start)
                self.reached = decoded
        return True
