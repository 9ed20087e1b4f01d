"""``/run/ftfw-transition``: the lock, who else is waiting, and what must not be forgotten."""

import contextlib
import fcntl
import json
import os
import stat
from typing import NamedTuple

from primary_backup.plan import State

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Unusable(Exception):
    """The run directory cannot be used, or must not be trusted."""


class Birth(NamedTuple):
    """When a process was born: its start in clock ticks since boot, then its pid (proc(5)).

    keepalived forks its hooks from one thread, so that this order is the order of its
    notifications, whatever order the hooks then run in.
    """

    ticks: int
    pid: int

    @property
    def seconds(self) -> float:
        """On the clock CLOCK_BOOTTIME."""
        return self.ticks / TICKS_PER_SECOND


class Ticket(NamedTuple):
    """One invocation: how old it is, and what it wants to become."""

    birth: Birth
    state: State


class Holder(NamedTuple):
    """Who holds the lock."""

    pid: int
    state: str
    stopped: bool
    """Whether it is stopped, by SIGSTOP or a debugger."""


class Memory(NamedTuple):
    """What the next transition must know of the earlier ones, of this boot and this daemon."""

    boot: str = ""
    daemon: tuple[int, ...] | None = None
    """Device, inode and change time of the UNIX socket; None where there was none."""
    ticks: int = 0
    pid: int = 0
    state: str = ""
    """Who sent the last request, and for which state."""
    transition: str = ""
    kept: bool = False
    """The external cache still holds what a promotion committed, or could not prove to have."""
    purge_due: float = 0.0
    """When a purge of ours fires (seconds, CLOCK_BOOTTIME); 0 where none is pending."""
    done: float = 0.0
    """When that transition ended ``ok`` (seconds, CLOCK_BOOTTIME); 0 if it did not."""

    @property
    def birth(self) -> Birth:
        """How old the invocation was that sent the last request."""
        return Birth(self.ticks, self.pid)


def boot_id() -> str:
    """What tells this boot from every other one (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _process(pid: int) -> tuple[Birth, str] | None:
    """When a process was born and its state letter; None if it does not live."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return (Birth(int(fields[19]), pid), fields[0]) if fields[0] not in "ZX" else None


def born() -> Birth:
    """This process's own birth."""
    process = _process(os.getpid())
    if process is None:
        raise ProcessLookupError(os.getpid())
    return process[0]


class RunDir:
    """An open run directory; every name in it is used relative to it, never by path again."""

    def __init__(self, path: str) -> None:
        """Make the directory where it is missing; raises Unusable."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                os.chmod(path, 0o700)  # keepalived's umask 0177 leaves it without x
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            found = os.fstat(self._fd)
            if found.st_uid != os.geteuid():
                raise Unusable(f"run directory {path} belongs to uid {found.st_uid}, not to us")
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise Unusable(f"run directory {path} can be written by others: chmod 0700 {path}")
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(self._fd, 0o700)
            self._lock = self._open("lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise Unusable(f"run directory {path}: {error.strerror}") from error
        self._shown: str | None = None
        self._held = False

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)

    def show(self, ticket: Ticket) -> None:
        """Show that this invocation waits or works, until it is withdrawn or dies."""
        name = f"ticket.{ticket.birth.ticks}.{ticket.birth.pid}.{ticket.state.value}"
        os.close(self._open(name, os.O_WRONLY | os.O_CREAT))
        self._shown = name

    def withdraw(self) -> None:
        """Take the ticket back and let the lock go."""
        if self._shown is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._shown, dir_fd=self._fd)
            self._shown = None
        if self._held:
            os.ftruncate(self._lock, 0)
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._held = False

    def tickets(self) -> list[Ticket]:
        """All invocations that are shown and live; those that died are cleared away."""
        tickets = []
        for name in os.listdir(self._fd):
            kind, _, rest = name.partition(".")
            if kind != "ticket":
                continue
            try:
                ticks, pid, state = rest.split(".")
                ticket = Ticket(Birth(int(ticks), int(pid)), State(state))
            except ValueError:
                continue  # not one of ours
            process = _process(ticket.birth.pid)
            if process is not None and process[0] == ticket.birth:
                tickets.append(ticket)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._fd)
        return tickets

    def youngest(self) -> Ticket | None:
        """The youngest invocation that is shown and lives."""
        return max(self.tickets(), default=None)

    def note_commit(self) -> None:
        """Note that a primary's commit was attempted to the end; raises OSError."""
        os.close(self._open("committed", os.O_WRONLY | os.O_CREAT))

    def has_committed(self) -> bool:
        """Whether one was, and no backup, fault or stop came since."""
        try:
            os.stat("committed", dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def forget_commit(self) -> None:
        """Make the next primary a first one; works on a full disk too."""
        with contextlib.suppress(OSError):  # not there, or a file system gone read-only
            os.unlink("committed", dir_fd=self._fd)

    def try_lock(self, ticket: Ticket) -> bool:
        """Take the lock if it is free; the kernel frees it when this process dies."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._held = True
        os.ftruncate(self._lock, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder is unnamed
            os.pwrite(self._lock, f"{ticket.birth.pid} {ticket.state.value}".encode(), 0)
        return True

    def holder(self) -> Holder | None:
        """Who holds the lock, as far as its file and /proc tell."""
        words = os.pread(self._lock, 100, 0).decode(errors="replace").split()
        if len(words) != 2 or not words[0].isdecimal():
            return None
        process = _process(int(words[0]))
        return Holder(int(words[0]), words[1], process[1] in "Tt") if process else None

    def recall(self) -> Memory:
        """What earlier transitions left; nothing of another boot, nothing from a broken file."""
        try:
            memory = Memory(**json.loads(self._read("memory.json")))
        except (OSError, ValueError, TypeError):
            return Memory()
        return memory if memory.boot == boot_id() else Memory()

    def memorise(self, memory: Memory) -> None:
        """Write down what the next transition must know; raises OSError."""
        self._write("memory.json", json.dumps(memory._asdict()))

    def remember(self, event: str) -> None:
        """Keep the last ``transition.finished``, the line exactly as it was logged."""
        self._write("last.json", event + "\n")

    def _read(self, name: str) -> str:
        with open(self._open(name, os.O_RDONLY), encoding="utf-8") as file:
            return file.read()

    def _write(self, name: str, text: str) -> None:
        new = f"{name}.{os.getpid()}"
        descriptor = self._open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            os.unlink(new, dir_fd=self._fd)
            raise
