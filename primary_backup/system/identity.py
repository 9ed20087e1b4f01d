"""Which processes are a daemon of this node: by what they run, and by no name of their own."""

import os
from enum import Enum
from typing import NamedTuple

from primary_backup.system.proc import status


class Identity(Enum):
    """What a process is to this node, beside one of its daemons."""

    OTHER = "another program, another user's, or in another namespace"
    INSTALLED = "the daemon of this node"
    FOREIGN = "root's, of the daemon's name, but not the installed program"
    UNKNOWN = "of the daemon's name, but it cannot be identified"
    HIDDEN = "not even its name can be read"


class Suspect(NamedTuple):
    """A process of the daemon's name that may be the daemon of this node, or may not."""

    pid: int
    what: str
    """A FOREIGN one's executable; why an UNKNOWN one cannot be identified."""
    contained: bool = False
    """Whether it has another root directory than we have."""


class Daemons(NamedTuple):
    """The processes that are a daemon of this node, or cannot be shown not to be."""

    installed: tuple[int, ...] = ()
    """The pids of those that run the installed program."""
    foreign: tuple[Suspect, ...] = ()
    unknown: tuple[Suspect, ...] = ()
    hidden: str = ""
    """Why there may be others that cannot be seen at all; empty if all can."""

    @property
    def none(self) -> bool:
        """Whether no process is or may be such a daemon."""
        return not any(self)


class Program(NamedTuple):
    """An installed program, as it is compared with what processes run."""

    path: str
    """Absolute, without symbolic links."""
    file: os.stat_result | None
    """None where it is not installed."""
    names: frozenset[str]
    """What a process that runs it may be called."""

    @classmethod
    def at(cls, path: str, name: str) -> "Program":
        """Look up the program at an absolute path, of a daemon of that name."""
        real = os.path.realpath(path)
        return cls(real, _stat(real), frozenset({name, *map(os.path.basename, (path, real))}))


_ENDED = (FileNotFoundError, ProcessLookupError)
"""What /proc raises of a process that has ended, of a kernel thread, and of a zombie."""
_HIDDEN = "/proc hides processes from one without CAP_SYS_PTRACE"
_UNREADABLE = "its executable cannot be read, for which CAP_SYS_PTRACE is needed"
_LONGEST_PATH = 200
"""Of a path that a process has chosen, so much is reported."""


def daemons(path: str, name: str) -> Daemons:
    """Find the processes that are, or may be, the daemon whose program is installed at ``path``.

    A process of another user costs one stat(2), whatever it runs and however much it has open.
    """
    program = Program.at(path, name)
    found: dict[Identity, list[int]] = {identity: [] for identity in Identity}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found[identify(int(entry), program)].append(int(entry))
    hidden = found[Identity.HIDDEN] or not os.path.exists("/proc/1")  # proc(5), hidepid
    return Daemons(
        tuple(found[Identity.INSTALLED]),
        tuple(map(_foreign, found[Identity.FOREIGN])),
        tuple(Suspect(pid, _UNREADABLE) for pid in found[Identity.UNKNOWN]),
        _HIDDEN if hidden else "",
    )


def is_installed(pid: int, path: str, name: str) -> bool:
    """Whether a process is the daemon of that name whose program is installed at ``path``."""
    return identify(pid, Program.at(path, name)) is Identity.INSTALLED


def identify(pid: int, program: Program) -> Identity:
    """Compare a process with the installed program of a daemon of this node.

    It is if all four of its user ids are 0, its user and network namespaces and its root directory
    are ours, and its executable is the installed program, by device and inode. After an upgrade the
    executable is ``(deleted)``, at that path and on that file system. Mount namespaces are not
    compared, because a hardened unit has its own; a container has another root directory.

    What a process can choose for itself makes it no daemon: its name, or, while it is not dumpable
    (prctl(2)), the owner of its files in /proc. The name decides only which processes are compared
    further: stat(2) of an executable may wait for a file system that does not answer.
    """
    try:
        if not _is_named(pid, program):
            return Identity.OTHER
    except _ENDED:
        return Identity.OTHER
    except OSError:
        return Identity.HIDDEN
    try:
        return _compare(pid, program)
    except _ENDED:
        return Identity.OTHER
    except OSError:
        return Identity.UNKNOWN


def _is_named(pid: int, program: Program) -> bool:
    """Whether a running process of root's is called like the daemon."""
    # The owner is root or the effective user: another one's process is none, at little cost.
    if os.stat(f"/proc/{pid}").st_uid != 0:
        return False
    if program.names.isdisjoint(_names(pid, _readlink(pid))):
        return False
    fields = status(pid)
    return fields["Uid"].split() == ["0"] * 4 and fields["State"].split()[0] not in "ZX"


def _compare(pid: int, program: Program) -> Identity:
    """Compare a process that is called like the daemon with the installed program."""
    path = _readlink(pid)
    if path is None:
        return Identity.UNKNOWN
    if any(_link(pid, kind) != _link("self", kind) for kind in ("user", "net")):
        return Identity.OTHER
    installed = _is_installed(pid, path, program) and not _is_elsewhere(pid)
    return Identity.INSTALLED if installed else Identity.FOREIGN


def _is_installed(pid: int, path: str, program: Program) -> bool:
    link = f"/proc/{pid}/exe"
    if program.file is not None and os.path.samestat(os.stat(link), program.file):
        return True
    if path != f"{program.path} (deleted)":
        return False
    # Not st_dev, which differs from file to file on an overlay.
    return os.statvfs(link).f_fsid == os.statvfs(os.path.dirname(program.path)).f_fsid


def _is_elsewhere(pid: int) -> bool:
    """Whether a process has another root directory than we have."""
    return not os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))


def _readlink(pid: int) -> str | None:
    """The path of a process's executable; None where it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except _ENDED:
        raise
    except OSError:  # no permission; a path that is too long, a file system that is gone
        return None


def _foreign(pid: int) -> Suspect:
    try:
        path = _readlink(pid) or "a program whose path cannot be read"
        return Suspect(pid, path[:_LONGEST_PATH], _is_elsewhere(pid))
    except OSError:
        return Suspect(pid, "a program that has ended")


def _names(pid: int, path: str | None) -> set[str]:
    """What a process is called: by its executable's file and by itself."""
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as file:
        name = file.read().rstrip("\n")
    if path is None:
        # The name may have been changed. Not read of all: it may wait for the process's memory.
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            path = file.read().partition("\0")[0]
    return {name, os.path.basename(path.removesuffix(" (deleted)"))}


def _link(pid: int | str, namespace: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{namespace}")


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
