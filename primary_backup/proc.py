"""This boot, and who runs in it: ``/proc``, as proc(5) describes it."""

import os
import time
from collections.abc import Iterator
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


def running(program: str) -> Iterator[int]:
    """The pids that run a program of that name in this network namespace."""
    return (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if runs(pid, program))


def runs(pid: int, program: str) -> bool:
    """Whether a process runs that program in this network namespace; a zombie runs none."""
    try:
        path = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        here = os.readlink("/proc/self/ns/net")
        return os.path.basename(path) == program and os.readlink(f"/proc/{pid}/ns/net") == here
    except OSError:
        return False  # it has ended meanwhile
