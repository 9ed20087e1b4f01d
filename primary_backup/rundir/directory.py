"""``/run/ftfw-transition``: its files, written whole or not at all, and the lock."""

import contextlib
import errno
import fcntl
import json
import os
import stat
from typing import Any, NamedTuple

from primary_backup.memory import Memory, from_json, to_json
from primary_backup.system.proc import Issued, boot_id, find_process

CONF = "conntrackd.conf"
"""The last one that a client accepted."""
_MEMORY = "memory.json"
_OURS = "memory.json as it was stored here"
_PROMOTION = "promotion"
_CONTINUITY = "continuity.json"


class Unusable(Exception):
    """The run directory cannot be used, or must not be trusted."""


class Holder(NamedTuple):
    """Who holds the lock."""

    pid: int
    state: str
    stopped: bool
    """Whether it is stopped, by SIGSTOP or a debugger."""


class RunDir:
    """An open run directory; every name in it is used relative to it, never by path again."""

    def __init__(self, path: str, *, changes: bool = True) -> None:
        """Make the directory where it is missing; raises Unusable.

        Without ``changes`` nothing is made, and it is used to read alone.
        """
        with contextlib.ExitStack() as opened:
            try:
                if changes:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(path, 0o700)
                        os.chmod(path, 0o700)  # keepalived's umask 0177 leaves it without x
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(path, flags)
                opened.callback(os.close, self.fd)
                _trust(self.fd, path, changes=changes)
                if changes:
                    self._lock = self.open("lock", os.O_RDWR | os.O_CREAT)
                    opened.callback(os.close, self._lock)
            except OSError as error:
                raise Unusable(f"run directory {path}: {error.strerror}") from error
            self._opened = opened.pop_all()
        self._opened.callback(self._let_go)
        self._recalled: tuple[object, Memory] = (None, Memory())
        self._kept: dict[str, int] = {}  # open: so no other file can have the number of its inode

    def close(self) -> None:
        """Close what is open, which frees the lock: a follower opens it for each notification."""
        self._opened.close()

    # -- files ------------------------------------------------------------------------------

    def open(self, name: str, flags: int) -> int:
        """Open a file; raises OSError also where another user may have written what is in it."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        opened = os.open(name, flags, 0o600, dir_fd=self.fd)
        if not _is_ours(os.fstat(opened)):
            os.close(opened)
            raise PermissionError(errno.EPERM, f"{name} may be another user's: remove it")
        return opened

    def is_ours(self, name: str) -> bool:
        """Whether a file is there that no other user could have written."""
        found = self._stat(name)
        return found is not None and _is_ours(found)

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        with contextlib.suppress(OSError):  # not there, or a file system gone read-only
            os.unlink(name, dir_fd=self.fd)

    def read(self, name: str) -> bytes:
        """The whole file; raises OSError."""
        with open(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Replace the whole file, or leave it as it is and raise OSError."""
        os.close(self._replace(name, data))

    def _replace(self, name: str, data: bytes) -> int:
        new = f"{name}.{os.getpid()}"
        self.remove(new)  # of a killed process of that number
        descriptor = self.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.replace(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            os.close(descriptor)
            os.unlink(new, dir_fd=self.fd)
            raise
        return descriptor

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None

    # -- what is stored between transitions -------------------------------------------------

    def recall(self) -> Memory:
        """What earlier transitions left; nothing of another boot, nothing from a broken file."""
        version = tuple(map(self._version, (_MEMORY, _PROMOTION)))
        if self._recalled[0] != version:  # else neither file was replaced since
            self._recalled = version, self._read_memory() if version[0] else Memory()
        return self._recalled[1]

    def _version(self, name: str) -> tuple[int, int] | None:
        found = self._stat(name)
        return (found.st_ino, found.st_mtime_ns) if found is not None else None

    def _read_memory(self) -> Memory:
        try:
            memory = from_json(self._keep(_MEMORY).decode(), boot_id())
        except (OSError, ValueError):
            return Memory()
        if memory.promotion is not None and memory.promotion.transition != self._promotion():
            return memory._replace(promotion=None)  # another state came since
        return memory

    def _promotion(self) -> str:
        try:
            return self._keep(_PROMOTION).decode()
        except (OSError, ValueError):
            return ""

    def newer(self, issued: Issued) -> Memory | None:
        """What a transition that was issued later has stored; None if none has."""
        stored, ours = self._stat(_MEMORY), self._kept.get(_OURS)
        if stored is not None and ours is not None and os.path.samestat(stored, os.fstat(ours)):
            return None  # nothing was stored since we did
        memory = self.recall()
        return memory if memory.last is not None and memory.last.issued > issued else None

    def _keep(self, name: str) -> bytes:
        opened = self.open(name, os.O_RDONLY)
        self._hold(name, opened)
        with open(opened, "rb", closefd=False) as file:
            return file.read()

    def _hold(self, name: str, opened: int) -> None:
        if name in self._kept:
            os.close(self._kept[name])
        self._kept[name] = opened

    def _let_go(self) -> None:
        for opened in self._kept.values():
            os.close(opened)

    def memorise(self, memory: Memory, *, promotes: bool = False) -> None:
        """Store what the next transition must know, unless a newer one has; raises OSError.

        ``promotes``: its promotion has begun, until ``forget_promotion``.
        """
        if memory.last is not None and self.newer(memory.last.issued) is not None:
            return
        if promotes and memory.promotion is not None:
            try:
                self.write(_PROMOTION, memory.promotion.transition.encode())
            except OSError:
                self.forget_promotion()  # a full disk: then the next promotion is a first one too
        self._hold(_OURS, self._replace(_MEMORY, to_json(memory, boot_id()).encode()))

    def forget_promotion(self) -> None:
        """Make the next promotion a first one; needs no lock, and works on a full disk."""
        self.remove(_PROMOTION)

    def remember(self, event: str) -> None:
        """Store the last ``transition.finished``, the line exactly as it was logged."""
        # A name that is not UTF-8 must not cost the record of what was carried out.
        self.write("last.json", f"{event}\n".encode(errors="backslashreplace"))

    def store_continuity(self, observed: Any) -> None:
        """Store the state in which keepalived was observed, any JSON value; raises OSError."""
        self.write(_CONTINUITY, json.dumps(observed).encode())

    def continuity(self) -> Any:
        """The state in which keepalived was observed last; None if nothing is known."""
        try:
            return json.loads(self.read(_CONTINUITY))
        except (OSError, ValueError):
            return None

    # -- the lock ---------------------------------------------------------------------------

    def try_lock(self, pid: int, state: str) -> bool:
        """Take the lock if it is free; closing frees it, and so does the death of this process."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._opened.callback(os.ftruncate, self._lock, 0)
        os.ftruncate(self._lock, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder is unnamed
            os.pwrite(self._lock, f"{pid} {state}".encode(), 0)
        return True

    def holder(self) -> Holder | None:
        """Who holds the lock, as far as its file and /proc show."""
        fields = os.pread(self._lock, 100, 0).decode(errors="replace").split()
        if len(fields) != 2 or not fields[0].isdecimal():
            return None
        process = find_process(int(fields[0]))
        return Holder(int(fields[0]), fields[1], process.stopped) if process else None


def _is_ours(found: os.stat_result) -> bool:
    """Whether a file is plain, ours, and no other user could have written into it."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and found.st_nlink == 1  # else it may be another file of ours, under this name
    )


def _trust(directory: int, path: str, *, changes: bool) -> None:
    """Raise Unusable where another user could have put files into the directory."""
    found = os.fstat(directory)
    if found.st_uid != os.geteuid():
        raise Unusable(f"run directory {path} belongs to uid {found.st_uid}: remove it")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(f"run directory {path} can be written by others: remove it")
    if changes and stat.S_IMODE(found.st_mode) != 0o700:
        os.fchmod(directory, 0o700)
