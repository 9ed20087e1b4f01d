"""What a firewall's programs send to its /dev/log."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from pathlib import Path
from typing import NamedTuple

# With the C library's time stamp or, as Python's SysLogHandler has it, without.
_DATAGRAM = re.compile(
    r"<(?P<priority>\d+)>"
    r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?"
    r"(?:(?P<identifier>[^\s:\[{]+)(?:\[\d+\])?: ?)?"
    r"(?P<message>.*)",
    re.DOTALL,
)


class Message(NamedTuple):
    """One line of the journal."""

    priority: int
    """Facility times eight, plus severity."""
    identifier: str
    message: str


def parse(datagram: bytes) -> Message:
    """Read a datagram of syslog; what is not one is a message without identifier."""
    text = datagram.decode(errors="replace").rstrip("\0\n")
    match = _DATAGRAM.fullmatch(text)
    if not match:
        return Message(-1, "", text)
    return Message(int(match["priority"]), match["identifier"] or "", match["message"])


class Journal:
    """A /dev/log that keeps every datagram as it came."""

    def __init__(self, path: Path) -> None:
        self._datagrams: list[bytes] = []
        self._reading = threading.Lock()
        self._open = True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        # A thread, because a sender blocks as soon as ten datagrams wait (net.unix.max_dgram_qlen).
        self._thread = threading.Thread(target=self._collect, name=f"journal {path}", daemon=True)
        self._thread.start()

    def datagrams(self) -> list[bytes]:
        """All that has been sent by now, whether or not the thread has got to it."""
        if self._open:
            self._drain()
        return self._datagrams.copy()

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while self._open:
            poll.poll()
            self._drain()

    def _drain(self) -> None:
        with self._reading, contextlib.suppress(BlockingIOError):
            while True:
                self._datagrams.append(self._socket.recv(1 << 18, socket.MSG_DONTWAIT))

    def close(self) -> None:
        """Stop listening; what has come stays readable."""
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends the poll
        self._thread.join(timeout=5)
        self._socket.close()
