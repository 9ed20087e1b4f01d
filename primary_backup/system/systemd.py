"""Reports of a service to systemd: sd_notify(3), one datagram each."""

import os
import socket
import time

from primary_backup.system.printable import printable


class Service:
    """The service manager that started us, if one did."""

    def __init__(self) -> None:
        """Take its address out of the environment: a conntrackd that we start is no part of it."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval = os.environ.pop("WATCHDOG_USEC", "")
        watched = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every = int(interval) / 2e6 if watched and interval.isdecimal() else 0.0
        self._next = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def notify(self, **fields: str) -> None:
        """Send ``READY="1"``, ``STATUS="…"`` and the like."""
        if not self._address:
            return
        # A line break in a value would begin another field, MAINPID= for one.
        text = "\n".join(f"{name}={printable(value)}" for name, value in fields.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            pass  # it is gone or busy; the log has what matters

    def pet_watchdog(self) -> None:
        """Report that we are running, twice in every WatchdogSec and no more often."""
        now = time.monotonic()
        if self._every and now >= self._next:
            self._next = now + self._every
            self.notify(WATCHDOG="1")

    @property
    def patience_seconds(self) -> float:
        """How long we may sleep before the watchdog is due."""
        return max(0.0, self._next - time.monotonic()) if self._every else 3600.0
