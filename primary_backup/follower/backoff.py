"""How often something is done again: at once, then after ever longer pauses."""

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
QUIET_SECONDS = 600.0
"""After this much quiet the back-off is reset."""


class Backoff:
    """At once, then after a pause that doubles each time, until there was quiet."""

    def __init__(self, longest: float = LONGEST_PAUSE_SECONDS) -> None:
        """``longest``: the pause that is never exceeded, in seconds."""
        self._longest = longest
        self._next = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    def allows(self, seconds: float) -> bool:
        """Whether to act now, in seconds on a monotonic clock."""
        return seconds >= self._next

    def take(self, seconds: float) -> None:
        """Note that one acts now."""
        if seconds > self._next + QUIET_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._next = seconds + self._pause
        self._pause = min(self._longest, 2 * self._pause)
