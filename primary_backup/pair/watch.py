"""When something of the peer's was received last: values alone.

conntrackd's own counter is polled every few seconds; the counter of the dedicated link's interface
and the peer's reports date a silence to the second. Times are seconds on one clock.
"""

ALONE_SECONDS = 600.0
"""A peer that was not received once in so long is not expected any more."""
ALONE = f"no peer was ever received, for {ALONE_SECONDS / 60:.0f} minutes: this node is alone"


class LinkWatch:
    """What was observed of the dedicated link so far."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._report: float | None = None
        self._interface: int | None = None
        self._interface_moved: float | None = None
        self._packets: int | None = None
        self._packets_moved: float | None = None
        self._is_moving = False

    def received(self, now: float) -> None:
        """A report of the peer's has arrived."""
        self._report = now

    def counted(self, now: float, packets: int | None) -> None:
        """So many packets has the interface received; None where it is not known."""
        if packets is None:
            self._interface = self._interface_moved = None
        elif packets != self._interface:
            self._interface, self._interface_moved = packets, now

    def polled(self, now: float, packets: int) -> None:
        """So many packets of the peer's has conntrackd received, since it was started."""
        self._since = now if self._since is None else self._since
        before, self._packets = self._packets, packets
        if before is None or packets < before:
            return  # a new daemon: the next poll shows what it receives
        self._is_moving = packets > before
        if self._is_moving:
            self._packets_moved = now

    def is_alone(self, now: float) -> bool:
        """Whether conntrackd was polled for long, and nothing of a peer's was ever received."""
        return (
            self._since is not None
            and now - self._since >= ALONE_SECONDS
            and self.last(now) is None
        )

    def last(self, now: float) -> float | None:
        """When something was received last; None where nothing was yet.

        Between two polls that differ the interface's counter shows since when there is a silence;
        where it has none, there is none before the next poll.
        """
        moved = self._packets_moved
        if self._is_moving:
            moved = now if self._interface_moved is None else self._interface_moved
        return max((at for at in (moved, self._report) if at is not None), default=None)
