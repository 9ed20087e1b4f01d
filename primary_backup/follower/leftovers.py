"""What a process leaves to the next one: unfinished, unrecorded, or a purge that is pending."""

import contextlib

from primary_backup.controller import Emit, enter
from primary_backup.intent import Intent, Kind
from primary_backup.memory import Memory
from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.tickets import take_unfinished
from primary_backup.rundir.turn import Caller
from primary_backup.settings import Settings
from primary_backup.system.proc import Issued, boot_seconds


def unfinished(path: str) -> Intent | None:
    """What a process that was killed has left unfinished in that run directory."""
    try:
        with contextlib.closing(RunDir(path)) as run_dir:
            ticket, last = take_unfinished(run_dir), run_dir.recall().last
    except Unusable:
        return None  # every transition reports it
    if ticket is None or (last is not None and ticket.issued < last.issued):
        return None
    return Intent(ticket.state, "resuming the transition that a killed process left unfinished")


def store(path: str, memory: Memory) -> bool:
    """Store in that run directory what a transition could not; False where that fails again."""
    promotes = memory.last is not None and memory.last.state is State.PRIMARY
    try:
        with contextlib.closing(RunDir(path)) as run_dir:
            run_dir.memorise(memory, promotes=promotes)
    except (Unusable, OSError):
        return False  # the transition has reported it
    return True


def disarm(settings: Settings, emit: Emit, issued: Issued) -> None:
    """Cancel a purge of ours that is pending: this node may be promoted while no follower runs.

    It stays deferred, and the next follower asks for it.
    """
    try:
        with contextlib.closing(RunDir(settings.run_dir)) as run_dir:
            memory = run_dir.recall()
    except Unusable:
        return  # then none was asked for
    last = memory.last
    if last is not None and memory.stands_by and memory.has_unforced_purge(boot_seconds()):
        why = "the follower ends: a purge that is pending is deferred"
        enter(Intent(last.state, why, Kind.DISARM), settings, emit, Caller(issued, []))
