"""Asking keepalived which VRRP state it is in, without disturbing it.

keepalived answers a real-time signal with a dump of its instances into a file (vrrp_json.c). One
that it does not know would end it, so that the number comes from keepalived itself, and is sent
only to a process that takes it.
"""

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from primary_backup.notify import Followed, Instance, read_dump
from primary_backup.plan import State
from primary_backup.proc import look, running, runs
from primary_backup.run import NotInstalled, run

ANSWER_SECONDS = 0.05
"""keepalived answers within 20 ms (seen: 1.3 ms, at most 17)."""
_NUMBER_SECONDS = 1.0
"""That much a busy machine may take to start a program."""
_LOOK_SECONDS = 0.001
_DUMP = "keepalived.json"
_LONGEST_DUMP = 1 << 22


class Unknown(Exception):
    """keepalived's state is not known, and why."""


class NotRunning(Unknown):
    """There is no keepalived here."""


class Standing(NamedTuple):
    """The state that keepalived is in."""

    state: State
    since: float
    """Seconds of the wall clock; a reload dates it anew."""
    births: tuple[int, ...]
    """Of each keepalived and its children, in ticks: one that is respawned counts anew."""
    promotions: dict[str, int]
    """How often each instance has become master."""


def standing(followed: Followed) -> Standing:
    """The state that keepalived is in; raises Unknown.

    A dump names no groups, so that for one all instances must agree.
    """
    births, parents = _family()
    said = _instances(parents)
    if followed.kind == "INSTANCE":
        said = tuple(each for each in said if each.name == followed.name)
    states = {each.state for each in said}
    if len(states) > 1:
        told = ", ".join(f"{each.name} {_word(each.state)}" for each in said)
        raise Unknown(f"keepalived's instances do not agree: {told}")
    state = states.pop() if states else None
    if state is None:
        raise Unknown(f"keepalived says nothing of {followed.name} yet")
    return Standing(
        state,
        max(each.since for each in said),
        births,
        {each.name: each.promotions for each in said},
    )


def writes(fifo: int) -> bool | None:
    """Whether keepalived has that FIFO open, by our descriptor; None where none runs."""
    ours = os.fstat(fifo)
    pids = list(running("keepalived"))
    if not pids:
        return None
    return any(os.path.samestat(found, ours) for pid in pids for found in _opened(pid))


def _opened(pid: int) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.stat(f"/proc/{pid}/fd/{name}")


def objection() -> str | None:
    """Why nothing may be purged here: keepalived calls this node master; None if it does not.

    Of several groups one is enough, since a purge takes the connections of all of them.
    """
    masters = [each.name for each in _answers() if each.state is State.PRIMARY]
    return f"keepalived says that this node is master of {', '.join(masters)}" if masters else None


def refutation() -> str | None:
    """Why this node is no primary: keepalived calls it master of nothing; None if it may be one."""
    states = {each.state for each in _answers()}
    if not states or states & {None, State.PRIMARY}:
        return None
    return f"keepalived says that this node is {' and '.join(sorted(map(_word, states)))}"


def _answers() -> Iterator[Instance]:
    """What those say who answer: one that only tests its configuration, perhaps, does not."""
    for parent in _family()[1]:
        with contextlib.suppress(Unknown):
            yield from _ask(parent)


def _word(state: State | None) -> str:
    return state.value if state else "in none"


def _instances(parents: tuple[int, ...]) -> tuple[Instance, ...]:
    """What every keepalived of this network namespace says of its instances; raises Unknown."""
    found = [instance for parent in parents for instance in _ask(parent)]
    if not found:
        raise NotRunning("keepalived is not running here")
    return tuple(found)


def _family() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """When each keepalived and its children were born, and the pids of those who are no children.

    Grandchildren are about to become somebody's script.
    """
    found = [process for pid in running("keepalived") if (process := look(pid)) is not None]
    pids = {process.birth.pid for process in found}
    parents = {process.birth.pid for process in found if process.parent not in pids}
    ours = sorted(
        process.birth for process in found if {process.birth.pid, process.parent} & parents
    )
    return tuple(birth.ticks for birth in ours), tuple(sorted(parents))


def _ask(pid: int) -> tuple[Instance, ...]:
    try:
        process = os.pidfd_open(pid)  # from here on nobody else can take its number
    except ProcessLookupError:
        return ()
    try:
        if not runs(pid, "keepalived"):
            return ()
        number = _signal_number(pid)
        directory = os.open(_dump_directory(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_DUMP, dir_fd=directory)
            signal.pidfd_send_signal(process, number)
            return _await_dump(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise Unknown(f"keepalived (pid {pid}) cannot be asked: {error.strerror}") from error
    finally:
        os.close(process)


def _signal_number(pid: int) -> int:
    """The number that this very keepalived gives, if the process takes it."""
    try:
        # env(1) executes the link itself: its target's name is gone after an upgrade.
        finished = run("/usr/bin/env", f"/proc/{pid}/exe", "--signum=JSON", seconds=_NUMBER_SECONDS)
    except NotInstalled as error:
        raise Unknown(str(error)) from error
    if finished.code is None:
        raise Unknown("keepalived --signum=JSON does not answer")
    text = finished.output.strip()
    if finished.code != 0 or not text.isdigit():
        raise Unknown("this keepalived has no JSON dump")
    number = int(text)
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.partition(":")[::2] for line in file)
    taken = int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)  # blocked: read by signalfd(2)
    if not taken >> (number - 1) & 1:
        raise Unknown("keepalived does not take the signal yet")
    return number


def _dump_directory(pid: int) -> str:
    """Where it puts its dump: keepalived honours TMPDIR, and may see other mounts than we do."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        variables = dict(each.partition(b"=")[::2] for each in file.read().split(b"\0"))
    directory = os.fsdecode(variables.get(b"TMPDIR", b""))
    if not directory.startswith("/"):
        directory = "/tmp"  # noqa: S108  # keepalived's choice
    return f"/proc/{pid}/root{os.path.abspath(directory)}"


def _await_dump(directory: int) -> tuple[Instance, ...]:
    """The dump, once it is whole: keepalived does not write it atomically."""
    import json  # only where a purge or a new follower asks

    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return read_dump(json.loads(_read_dump(directory)))
        if time.monotonic() > deadline:
            raise Unknown("keepalived does not answer")
        time.sleep(_LOOK_SECONDS)


def _read_dump(directory: int) -> bytes:
    """Anybody may write into /tmp: no link is followed, nothing is read but root's plain file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(_DUMP, flags, dir_fd=directory), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0:
            raise PermissionError(0, f"{_DUMP} is not root's")
        return file.read(_LONGEST_DUMP)
