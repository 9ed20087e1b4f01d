"""The signals that a follower has received, and a descriptor that wakes a select(2)."""

import os
import signal


class Signals:
    """SIGTERM and SIGINT end the follower; SIGHUP has it check conntrackd.conf."""

    def __init__(self) -> None:
        """Take them from now on: they end no system call half done."""
        self.received: list[str] = []
        """Those that end it, in order."""
        self._hangup = False
        self._awake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: self.received.append(signal.Signals(n).name))
        signal.signal(signal.SIGHUP, self._hang_up)

    def _hang_up(self, _number: int, _frame: object) -> None:
        self._hangup = True

    def fileno(self) -> int:
        """Readable once there is one."""
        return self._awake

    def drain(self) -> None:
        """Let the next select(2) wait again."""
        os.read(self._awake, 4096)

    def take_hangup(self) -> bool:
        """Whether SIGHUP has come since the last call."""
        taken, self._hangup = self._hangup, False
        return taken
