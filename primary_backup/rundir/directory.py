"""``/run/ftfw-transition``: the lock, who else is waiting, and what must not be forgotten."""

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from primary_backup.plan import PURGES, State
from primary_backup.system.proc import Issued, boot_id, look

CONF = "conntrackd.conf"
"""The last one that a client accepted."""


class Unusable(Exception):
    """The run directory cannot be used, or must not be trusted."""


class Ticket(NamedTuple):
    """One intent: how old it is, what is to become of this node, and who carries it out."""

    issued: Issued
    state: State
    started: int = 0
    """When that process was born, in ticks; 0 where the intent is as old: a hook's."""

    @property
    def name(self) -> str:
        """Its file: an intent of another boot is none, nor one of another process."""
        ticks, pid, number = self.issued
        return f"ticket.{boot_id()[:8]}.{ticks}.{pid}.{number}.{self.started}.{self.state.value}"

    @classmethod
    def parse(cls, name: str) -> "Ticket | None":
        """Read such a name; None where it is not one of this boot."""
        try:
            kind, boot, ticks, pid, number, started, state = name.split(".")
            ticket = cls(Issued(int(ticks), int(pid), int(number)), State(state), int(started))
        except ValueError:
            return None
        return ticket if (kind, boot) == ("ticket", boot_id()[:8]) else None

    @property
    def lives(self) -> bool:
        """Whether its process does."""
        process = look(self.issued.pid)
        return process is not None and process.issued.ticks == (self.started or self.issued.ticks)


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
    number: int = 0
    state: str = ""
    """Who sent the last request, and for which state."""
    transition: str = ""
    kept: bool = False
    """The external cache still holds what a promotion committed, or could not prove to have."""
    purge_due: float = 0.0
    """When a purge of ours fires (seconds, CLOCK_BOOTTIME); 0 where none is pending."""
    forced: bool = False
    """That purge was meant, whatever keepalived says."""
    done: float = 0.0
    """When that transition ended ``ok`` (seconds, CLOCK_BOOTTIME); 0 if it did not."""
    ended: str = ""
    """Its outcome; empty while it is under way, or where its process was killed."""
    began: float = 0.0
    """When it began, in seconds of the wall clock, which is keepalived's."""
    promotion: str = ""
    """The transition that made this node primary; see ``RunDir.promotion``."""
    committed: bool = False
    """That one's commit was asked, and waited for to its end; or its entries were live already."""
    inserted: int | None = None
    entries: int | None = None
    """The kernel's counters right before that commit; both None where there was none."""
    silent: bool = False
    """Nobody was heard on the dedicated link while that transition listened."""
    lacking: bool = False
    """A former daemon's external cache is lost, and the peer has not sent it again."""
    held: bool = False
    """A purge was deferred: the peer's copy did not cover this node's, or keepalived forbade it."""

    @property
    def stands_by(self) -> bool:
        """Whether the last word was a backup's or a fault's."""
        return self.state in {state.value for state in PURGES}

    @property
    def issued(self) -> Issued:
        """How old the invocation was that sent the last request."""
        return Issued(self.ticks, self.pid, self.number)


class RunDir:
    """An open run directory; every name in it is used relative to it, never by path again."""

    def __init__(self, path: str) -> None:
        """Make the directory where it is missing; raises Unusable."""
        with contextlib.ExitStack() as opened:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                    os.chmod(path, 0o700)  # keepalived's umask 0177 leaves it without x
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(path, flags)
                opened.callback(os.close, self._fd)
                _trust(self._fd, path)
                self._lock = self._open("lock", os.O_RDWR | os.O_CREAT)
                opened.callback(os.close, self._lock)
            except OSError as error:
                raise Unusable(f"run directory {path}: {error.strerror}") from error
            self._opened = opened.pop_all()
        self._shown: str | None = None
        self._held = False

    def close(self) -> None:
        """Let go of what is open: a follower opens it for every word."""
        self._opened.close()

    def _open(self, name: str, flags: int) -> int:
        """Open a file; raises OSError also where another user may have written what is in it."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        opened = os.open(name, flags, 0o600, dir_fd=self._fd)
        if not _is_ours(os.fstat(opened)):
            os.close(opened)
            raise PermissionError(errno.EPERM, f"{name} may be another user's: remove it")
        return opened

    def show(self, ticket: Ticket) -> None:
        """Show that this intent waits or is carried out, until it is withdrawn or dies."""
        os.close(self._open(ticket.name, os.O_WRONLY | os.O_CREAT))
        self._shown = ticket.name

    def leave(self) -> None:
        """Let the lock go, but not the ticket: whoever comes after finds what was not finished."""
        self._shown = None
        self.withdraw()

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
        """All intents that are shown and live; those that died are cleared away."""
        self.unfinished()
        return [ticket for ticket in self._all_tickets() if ticket.lives]

    def unfinished(self) -> Ticket | None:
        """The youngest intent whose process died over it or left it; all such are cleared away."""
        ours = os.getpid()
        dead = [
            ticket
            for ticket in self._all_tickets()
            if not ticket.lives or (ticket.issued.pid == ours and ticket.name != self._shown)
        ]
        for ticket in dead:
            with contextlib.suppress(OSError):
                os.unlink(ticket.name, dir_fd=self._fd)
        return max(dead, default=None)

    def _all_tickets(self) -> Iterator[Ticket]:
        for name in os.listdir(self._fd):
            if name.startswith("ticket."):
                ticket = Ticket.parse(name)
                if ticket is not None and self._holds(name):
                    yield ticket

    def _holds(self, name: str) -> bool:
        try:
            return _is_ours(os.stat(name, dir_fd=self._fd, follow_symlinks=False))
        except FileNotFoundError:
            return False  # it was withdrawn meanwhile

    def youngest(self) -> Ticket | None:
        """The youngest intent that is shown and lives."""
        return max(self.tickets(), default=None)

    def promote(self, transition: str) -> None:
        """Note which transition made this node primary, the next step down will forget it."""
        try:
            self._write("promotion", transition)
        except OSError:
            self.step_down()  # a full disk: then the next promotion is a first one too

    def promotion(self) -> str:
        """Which one did, if no backup, fault or stop came since; empty if none holds."""
        try:
            return self._read("promotion")
        except (OSError, ValueError):
            return ""

    def step_down(self) -> None:
        """Make the next promotion a first one; works on a full disk too."""
        with contextlib.suppress(OSError):  # not there, or a file system gone read-only
            os.unlink("promotion", dir_fd=self._fd)

    def keep_conf(self, text: bytes) -> None:
        """Keep the conntrackd.conf by which a transition was carried out; raises OSError."""
        self._write(CONF, text)

    def kept_conf(self) -> bytes:
        """Read the conntrackd.conf of the last accepted transition; raises OSError if none is."""
        with open(self._open(CONF, os.O_RDONLY), "rb") as file:
            return file.read()

    def keep_tenure(self, tenure: Any) -> None:
        """Keep what keepalived was seen to be in, any JSON value; raises OSError."""
        self._write("tenure.json", json.dumps(tenure))

    def tenure(self) -> Any:
        """What it was seen to be in last; None if nothing is known."""
        try:
            return json.loads(self._read("tenure.json"))
        except (OSError, ValueError):
            return None

    def try_lock(self, ticket: Ticket) -> bool:
        """Take the lock if it is free; the kernel frees it when this process dies."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._held = True
        os.ftruncate(self._lock, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder is unnamed
            os.pwrite(self._lock, f"{ticket.issued.pid} {ticket.state.value}".encode(), 0)
        return True

    def holder(self) -> Holder | None:
        """Who holds the lock, as far as its file and /proc tell."""
        words = os.pread(self._lock, 100, 0).decode(errors="replace").split()
        if len(words) != 2 or not words[0].isdecimal():
            return None
        process = look(int(words[0]))
        return Holder(int(words[0]), words[1], process.stopped) if process else None

    def recall(self) -> Memory:
        """What earlier transitions left; nothing of another boot, nothing from a broken file."""
        try:
            said = json.loads(self._read("memory.json"))
            memory = Memory(**{name: said[name] for name in Memory._fields if name in said})
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

    def _write(self, name: str, text: str | bytes) -> None:
        new = f"{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):  # of a killed process of that number
            os.unlink(new, dir_fd=self._fd)
        descriptor = self._open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(descriptor, "wb") as file:
                # A name that is not UTF-8 must not cost the record of what was carried out.
                data = text if isinstance(text, bytes) else text.encode(errors="backslashreplace")
                file.write(data)
            os.replace(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            os.unlink(new, dir_fd=self._fd)
            raise


def _is_ours(found: os.stat_result) -> bool:
    """Whether a file is plain, ours, and no other user could have written into it."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and found.st_nlink == 1  # else it may be another file of ours, under this name
    )


def _trust(directory: int, path: str) -> None:
    """Raise Unusable where another user could have put files into the directory."""
    found = os.fstat(directory)
    if found.st_uid != os.geteuid():
        raise Unusable(f"run directory {path} belongs to uid {found.st_uid}: remove it")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(f"run directory {path} can be written by others: remove it")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.fchmod(directory, 0o700)
