"""keepalived's notify FIFO: reading its whole lines, and noticing that it was re-created."""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from primary_backup.system.identity import Daemons

TAKEN_SECONDS = 2.0
"""keepalived kills a follower that it started a second after a reload has started the next."""
_POLL_SECONDS = 0.02
_CHUNK = 65536
_FULL = 0.9
"""A pipe of which less is free may have refused a line: it holds whole pages."""
_LONGEST_LINE = 4096
_NO_LINE = b"\0"
"""An over-long line is replaced by NUL, so that its remainder can match no keepalived line."""


class NoFifo(Exception):
    """The FIFO cannot be used, or must not be trusted."""


class Fifo:
    """An open FIFO that no other process follows; ``fileno()`` is readable once there is more."""

    def __init__(self, path: str) -> None:
        """Make it where it is missing; raises NoFifo, after 2 s if another process follows it."""
        self.path = path
        self._begun = b""
        self.overflowed = False
        """Whether it was full when it was read last: keepalived drops what does not fit."""
        deadline = time.monotonic() + TAKEN_SECONDS
        while True:
            self._fd = _open(path)
            if _take(self._fd) and not self.is_replaced():
                return
            os.close(self._fd)
            if time.monotonic() > deadline:
                raise NoFifo(f"{path} is followed by another process: end that one first")
            time.sleep(_POLL_SECONDS)

    def fileno(self) -> int:
        """For select(2)."""
        return self._fd

    def lines(self) -> list[bytes]:
        """All whole lines that are there now; half a line waits for its other half."""
        read = b""
        limit = _CHUNK * 64  # a writer without end must not keep us here
        while len(read) < limit:
            try:
                chunk = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                break
            read += chunk
        self.overflowed = len(read) > _FULL * fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
        *lines, self._begun = (self._begun + read).split(b"\n")
        if len(self._begun) > _LONGEST_LINE:
            self._begun = _NO_LINE
        return lines

    def is_replaced(self) -> bool:
        """Whether the path leads elsewhere by now: keepalived unlinks a FIFO that it has made."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        return not os.path.samestat(found, os.fstat(self._fd))

    def close(self) -> None:
        """Let another process follow it."""
        os.close(self._fd)


def _open(path: str) -> int:
    """Open what is there, once it is known to be a FIFO of our own: a device may act upon it."""
    try:
        try:
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # keepalived was faster
                os.mkfifo(path, 0o600)
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if not stat.S_ISFIFO(status.st_mode):
                raise NoFifo(f"{path} is not a FIFO: name another path, or remove it")
            if status.st_uid != os.geteuid():
                raise NoFifo(f"{path} belongs to uid {status.st_uid}: remove it")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise NoFifo(f"{path} can be written by others: remove it")
            # Read and write: an end that only reads sees an end of file when keepalived goes.
            opened = os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(found)
        os.fchmod(opened, 0o600)  # whatever the umask; another reader would take our lines away
    except OSError as error:
        raise NoFifo(f"{path}: {error.strerror}") from error
    return opened


def _take(fifo: int) -> bool:
    try:
        fcntl.flock(fifo, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def writes(found: Daemons, fifo: int) -> bool | None:
    """Whether one of these has that FIFO open, by our descriptor; None where that is unknown."""
    if not found.installed or found.unknown:
        return None
    ours = os.fstat(fifo)
    return any(os.path.samestat(each, ours) for pid in found.installed for each in _opened(pid))


def readers(found: Daemons, fifo: int) -> tuple[str, ...]:
    """The other processes that have that FIFO open, by our descriptor, but for keepalived's."""
    ours = os.fstat(fifo)
    known = {os.getpid(), *found.installed}
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    return tuple(
        f"{_called(pid)} (pid {pid})"
        for pid in pids
        if pid not in known and any(os.path.samestat(each, ours) for each in _opened(pid))
    )


def _called(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "a process"


def _opened(pid: int) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.stat(f"/proc/{pid}/fd/{name}")
