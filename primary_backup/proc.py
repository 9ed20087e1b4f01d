"""This boot, and who runs in it: ``/proc``, as proc(5) describes it."""

import os
import time
from enum import Enum
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Birth(NamedTuple):
    """How old an intent is: clock ticks since boot, then the pid of whoever carries it out.

    For a hook that is its own start (the 22nd field of /proc/PID/stat). keepalived forks its
    hooks from one thread, so that this order is the order of its notifications, whatever order
    the hooks then run in. For a follower it is when it read the word, and which one that was.
    """

    ticks: int
    pid: int
    word: int = 0
    """Of a follower's words, from 1 on: it reads many in one tick."""

    @property
    def seconds(self) -> float:
        """On the clock CLOCK_BOOTTIME."""
        return self.ticks / TICKS_PER_SECOND


class Process(NamedTuple):
    """A process that lives."""

    birth: Birth
    parent: int
    stopped: bool
    """Whether it is stopped, by SIGSTOP or a debugger."""


def boot_id() -> str:
    """What tells this boot from every other one (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def boot_seconds() -> float:
    """Seconds since boot, with those asleep: the clock of a process's birth (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def look(pid: int) -> Process | None:
    """Look at a process; None where it does not live any more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    state, parent, start = fields[0], int(fields[1]), int(fields[19])
    return Process(Birth(start, pid), parent, state in "Tt") if state not in "ZX" else None


def born() -> Birth:
    """This process's own birth."""
    process = look(os.getpid())
    if process is None:
        raise ProcessLookupError(os.getpid())
    return process.birth


class Identity(Enum):
    """What a process is to this node, beside one of its daemons."""

    OTHER = "another program, another user's, or in another namespace"
    INSTALLED = "the daemon of this node"
    FOREIGN = "root's, of the daemon's name, but not the installed program"
    UNKNOWN = "of the daemon's name, but it cannot be identified"


class Suspect(NamedTuple):
    """A process that may be the daemon of this node, or may not."""

    pid: int
    what: str
    """A FOREIGN one's executable; why an UNKNOWN one cannot be identified."""


class Daemons(NamedTuple):
    """The processes that are a daemon of this node, or cannot be shown not to be."""

    installed: tuple[int, ...] = ()
    """The pids of those that run the installed program."""
    foreign: tuple[Suspect, ...] = ()
    unknown: tuple[Suspect, ...] = ()

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
    devices: frozenset[int]
    """Of it and of its directory: on an overlay they differ."""

    @property
    def name(self) -> str:
        """The last component of its path."""
        return os.path.basename(self.path)

    @classmethod
    def at(cls, path: str) -> "Program":
        """Look up the program at an absolute path."""
        real = os.path.realpath(path)
        file, directory = _stat(real), _stat(os.path.dirname(real))
        return cls(real, file, frozenset(each.st_dev for each in (file, directory) if each))


def daemons(path: str) -> Daemons:
    """Find the processes that are, or may be, the daemon whose program is installed at ``path``.

    A process of another user costs one stat(2), whatever it runs and however much it has open.
    """
    program = Program.at(path)
    found: dict[Identity, list[int]] = {identity: [] for identity in Identity}
    for name in os.listdir("/proc"):
        if name.isdigit():
            found[identify(int(name), program)].append(int(name))
    unknown = [
        Suspect(pid, f"/proc/{pid}/exe cannot be read without CAP_SYS_PTRACE")
        for pid in found[Identity.UNKNOWN]
    ]
    if not os.path.exists("/proc/1"):  # proc(5), hidepid=ptraceable: others may be hidden too
        unknown.append(Suspect(1, "/proc hides processes from one without CAP_SYS_PTRACE"))
    return Daemons(
        tuple(found[Identity.INSTALLED]),
        tuple(Suspect(pid, _executable(pid)) for pid in found[Identity.FOREIGN]),
        tuple(unknown),
    )


def identify(pid: int, program: Program) -> Identity:
    """Say whether a process is the daemon of this node whose program is given.

    It is if all four of its user ids are 0, its user and network namespaces are ours, and its
    executable is the installed program, by device and inode. After an upgrade the executable is
    ``(deleted)``, at that path and on that device. A process in another root directory is none: a
    container may have any file at that path. Mount namespaces are not compared, because a
    hardened unit has its own.

    What a process can choose for itself proves nothing: its name, or, while it is not dumpable
    (prctl(2)), the owner of its files in /proc.
    """
    try:
        # The owner is root or the effective user: another one's process is none, at little cost.
        if os.stat(f"/proc/{pid}").st_uid != 0:
            return Identity.OTHER
        identity = _identify_executable(pid, program)
        if identity is Identity.OTHER or _status(pid)["Uid"].split() != ["0"] * 4:
            return Identity.OTHER
        if identity is not Identity.UNKNOWN and _is_elsewhere(pid):
            return Identity.OTHER
    except (FileNotFoundError, ProcessLookupError):
        return Identity.OTHER  # it has ended meanwhile; a zombie and a kernel thread run no file
    return identity


def _identify_executable(pid: int, program: Program) -> Identity:
    try:
        file, path = os.stat(f"/proc/{pid}/exe"), _executable(pid)
        installed = program.file is not None and os.path.samestat(file, program.file)
        if path == f"{program.path} (deleted)" and file.st_dev in program.devices:
            installed = True
        if not installed and os.path.basename(path.removesuffix(" (deleted)")) != program.name:
            return Identity.OTHER
        ours = os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
    except PermissionError:
        return Identity.UNKNOWN if program.name in _names(pid) else Identity.OTHER
    return Identity.INSTALLED if installed and ours else Identity.FOREIGN


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return "a program that has ended"


def _names(pid: int) -> set[str]:
    """What a process is called: all that is known of one whose executable cannot be read."""
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
        first = file.read().partition("\0")[0]
    return {_status(pid)["Name"].strip(), os.path.basename(first)}


def _is_elsewhere(pid: int) -> bool:
    return any(
        os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        for kind in ("user", "net")
    )


def _status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status, which every user may read."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.partition(":")[::2] for line in file)


def takes(pid: int, number: int) -> bool:
    """Say whether a process catches a signal, or blocks it to read it from a signalfd(2)."""
    fields = _status(pid)
    return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) >> (number - 1) & 1)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
