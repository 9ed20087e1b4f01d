"""Tickets: a file for each notification that waits or is carried out, named by its order."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir
from primary_backup.system.proc import Issued, boot_id, find_process


class Ticket(NamedTuple):
    """One notification: when it was issued, for which state, and which process carries it out."""

    issued: Issued
    state: State
    started: int = 0
    """When that process was started, in ticks; 0 where that is when it was issued: a hook's."""

    @property
    def name(self) -> str:
        """Its file: no ticket is of another boot, nor of another process with this pid."""
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
    def is_running(self) -> bool:
        """Whether its process is."""
        process = find_process(self.issued.pid)
        return process is not None and process.issued.ticks == (self.started or self.issued.ticks)


def show(run_dir: RunDir, ticket: Ticket) -> None:
    """Show a ticket to all other processes; raises OSError."""
    os.close(run_dir.open(ticket.name, os.O_WRONLY | os.O_CREAT))


def under_way(run_dir: RunDir, ours: Ticket | None = None) -> list[Ticket]:
    """The tickets whose processes are running, but for ``ours``."""
    return [ticket for ticket in _all(run_dir, ours) if ticket.is_running]


def take_unfinished(run_dir: RunDir, ours: Ticket | None = None) -> Ticket | None:
    """Remove the tickets whose processes died or left them; returns the newest of these.

    ``ours`` is the ticket that this process carries out now: any other of its own it has left.
    """
    pid = os.getpid()
    left = [
        ticket
        for ticket in _all(run_dir, ours)
        if not ticket.is_running or ticket.issued.pid == pid
    ]
    for ticket in left:
        run_dir.remove(ticket.name)
    return max(left, default=None)


def _all(run_dir: RunDir, but: Ticket | None) -> Iterator[Ticket]:
    ours = but.name if but is not None else ""
    for name in os.listdir(run_dir.fd):
        if name.startswith("ticket.") and name != ours:
            ticket = Ticket.parse(name)
            if ticket is not None and run_dir.is_ours(name):
                yield ticket
