"""This boot and its processes: ``/proc``, as proc(5) describes it."""

import os
import time
from functools import cache
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Issued(NamedTuple):
    """When a notification or command was issued, which is its order: higher is newer.

    For a hook that is its own start (the 22nd field of /proc/PID/stat). keepalived forks its
    hooks from one thread, so that this order is the order of its notifications, whatever order
    the hooks then run in. A follower numbers the lines that it reads.
    """

    ticks: int
    """Clock ticks since boot."""
    pid: int
    """The process that carries it out."""
    number: int = 0
    """Of a follower's lines, from 1 on: it reads many in one tick."""

    @property
    def seconds(self) -> float:
        """On the clock CLOCK_BOOTTIME."""
        return self.ticks / TICKS_PER_SECOND


class Process(NamedTuple):
    """A process that is running, or stopped."""

    issued: Issued
    parent: int
    stopped: bool
    """Whether it is stopped, by SIGSTOP or a debugger."""


@cache
def boot_id() -> str:
    """What distinguishes this boot from every other one (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def boot_seconds() -> float:
    """Seconds since boot, with those asleep: the clock of a process's start (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_time(boot: float) -> str:
    """The wall clock's time of a time on CLOCK_BOOTTIME."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() - (boot_seconds() - boot)))


def find_process(pid: int) -> Process | None:
    """Find a process; None where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    state, parent, start = fields[0], int(fields[1]), int(fields[19])
    return Process(Issued(start, pid), parent, state in "Tt") if state not in "ZX" else None


def own_start() -> Issued:
    """When this process was started, which is when a hook's notification was issued."""
    process = find_process(os.getpid())
    if process is None:
        raise ProcessLookupError(os.getpid())
    return process.issued


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.partition(":")[::2] for line in file)


def takes(pid: int, number: int) -> bool:
    """Whether a process catches a signal, or blocks it to read it from a signalfd(2)."""
    fields = status(pid)
    return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) >> (number - 1) & 1)
