"""What a killed process has left unfinished, and what a full run directory left unrecorded."""

import contextlib

from primary_backup.intent import Intent
from primary_backup.memory import Memory
from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.tickets import take_unfinished


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


def has_stored(path: str, memory: Memory) -> bool:
    """Store in that run directory what a transition could not store there; whether it is there."""
    promotes = memory.last is not None and memory.last.state is State.PRIMARY
    try:
        with contextlib.closing(RunDir(path)) as run_dir:
            run_dir.memorise(memory, promotes=promotes)
    except (Unusable, OSError):
        return False  # the transition has reported it
    return True
