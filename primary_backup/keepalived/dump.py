"""The dump of one keepalived process, and nothing that another user has put in its place.

keepalived answers a real-time signal with a dump of its instances into a file (vrrp_json.c). It is
not written atomically, and may lie in a directory where all may write.
"""

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.keepalived.notify import Instance, read_dump

_CLOCK_REALTIME_COARSE = 5
"""Of clock_gettime(2): the clock by which file systems date their files."""
_DUMP = "keepalived.json"
_LONGEST_DUMP = 1 << 22


class Unknown(Exception):
    """keepalived's state is not known, and why."""


def ask(
    pid: int, number: int, is_ready: Callable[[], bool], wait: Callable[[str], None]
) -> tuple[Instance, ...] | None:
    """Ask one process for its dump, by signal ``number``; None where it ends meanwhile.

    The signal would end a process that does not know it: it is sent once ``is_ready``, which is
    False where the process ends. ``wait`` waits a little, and raises Unknown with what it is given
    once that has taken too long. Raises Unknown.
    """
    try:
        process = os.pidfd_open(pid)  # from here on no other process can take its number
    except ProcessLookupError:
        return None
    where = ""
    try:
        if not is_ready():
            return None
        path = _directory_of(pid)
        where = f"{path}/{_DUMP}: "
        path = f"/proc/{pid}/root{path}"  # it may see other mounts than we do
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _dump(process, number, directory, wait)
        finally:
            os.close(directory)
    except OSError as error:
        if _has_ended(process):
            return None
        why = f"{where}{error.strerror}"
        raise Unknown(f"keepalived (pid {pid}) cannot be asked: {why}") from error
    finally:
        os.close(process)


def _dump(
    process: int, number: int, directory: int, wait: Callable[[str], None]
) -> tuple[Instance, ...] | None:
    """Signal the process; its dump, once it is whole. None if it ends meanwhile.

    Where others may write into the directory, they may have put anything there. Nothing is
    removed then, and only what was written after the signal counts.
    """
    import json  # only where a purge or a new follower asks

    earlier = _Earlier.in_directory(directory)
    if earlier is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_DUMP, dir_fd=directory)
    signal.pidfd_send_signal(process, number)
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            text = _read(directory, earlier).decode(errors="surrogateescape")
            return read_dump(json.loads(text))
        if _has_ended(process):
            return None
        wait("wrote no dump")


def _has_ended(process: int) -> bool:
    """Whether a process has, by its descriptor (pidfd_open(2)): a zombie has ended too."""
    return bool(select.select([process], [], [], 0)[0])


def _directory_of(pid: int) -> str:
    """Where it puts its dump, among the files that it sees: keepalived honours TMPDIR."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        variables = dict(each.partition(b"=")[::2] for each in file.read().split(b"\0"))
    directory = os.fsdecode(variables.get(b"TMPDIR", b""))
    if not directory.startswith("/"):
        directory = "/tmp"  # noqa: S108  # keepalived's choice
    return os.path.abspath(directory)


def _is_roots_alone(found: os.stat_result) -> bool:
    """Whether no other user could have written a file, or into a directory."""
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class _Earlier(NamedTuple):
    """What no answer is, in a directory where others may write: what was there before."""

    asked: int
    """When the question was asked, in ns of the clock by which file systems date their files."""
    file: os.stat_result | None
    """The file that was there then. Its date may be as late: that clock stands for some ms."""

    @classmethod
    def in_directory(cls, directory: int) -> "_Earlier | None":
        """Observe a directory right before the signal; None where only root may write."""
        if _is_roots_alone(os.fstat(directory)):
            return None
        file = None
        with contextlib.suppress(FileNotFoundError):
            file = os.stat(_DUMP, dir_fd=directory, follow_symlinks=False)
        return cls(time.clock_gettime_ns(_CLOCK_REALTIME_COARSE), file)

    def excludes(self, found: os.stat_result) -> bool:
        """Whether a file was there before, or was written before the clock was set back."""
        if not self.asked <= found.st_mtime_ns <= time.time_ns():
            return True
        if self.file is None or not os.path.samestat(found, self.file):
            return False
        return found.st_mtime_ns == self.file.st_mtime_ns


def _read(directory: int, earlier: _Earlier | None) -> bytes:
    """Read the dump: root's own plain file, no link, and none that was there ``earlier``."""
    found = os.stat(_DUMP, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or not _is_roots_alone(found):
        raise PermissionError(0, f"no plain file of root's, but of uid {found.st_uid}: remove it")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(_DUMP, flags, dir_fd=directory), "rb") as file:
        if not os.path.samestat(os.fstat(file.fileno()), found):
            raise FileNotFoundError  # it was replaced meanwhile
        if earlier is not None and earlier.excludes(found):
            raise FileNotFoundError
        return file.read(_LONGEST_DUMP)
