"""Asking keepalived which VRRP state it is in, without disturbing it.

keepalived answers a real-time signal with a dump of its instances into a file (vrrp_json.c). The
signal's number comes from the installed program. The signal would end a process that does not
know it, so that it is sent only to one that takes it.
"""

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from primary_backup.keepalived.notify import Followed, Instance, read_dump
from primary_backup.plan import State
from primary_backup.proof import Outcome, Verdict
from primary_backup.system.proc import Daemons, Identity, Program, daemons, identify, look, takes
from primary_backup.system.run import NotInstalled, run

ANSWER_SECONDS = 0.5
"""For one answer, which keepalived gives within 20 ms (seen: 1.3 ms, at most 17);
a busy machine may keep one that is no real-time process from it."""
_NUMBER_SECONDS = 1.0
"""That much a busy machine may take to start a program."""
_POLL_SECONDS = 0.002
"""About as long as an answer takes."""
_CLOCK_REALTIME_COARSE = 5
"""Of clock_gettime(2): the clock by which file systems date their files."""
_NAME = "keepalived"
_DUMP = "keepalived.json"
_STEP_DOWN = "tell keepalived to step down, or add --force if you mean it"
_ASK_AGAIN = (
    "a follower asks again by itself; with hooks run the same command again once keepalived "
    "answers, or with --force if this node is not master"
)
_LONGEST_DUMP = 1 << 22
_MOST_UNASKED = 3
"""So many programs that are not asked are reported: a container may start any number."""
_numbers: dict[tuple[int, int, int], int] = {}
"""The signal's number, by device, inode and change time of the program: it is asked once."""


class Unknown(Exception):
    """keepalived's state is not known, and why."""


class NotRunning(Unknown):
    """There is no keepalived here."""


class Standing(NamedTuple):
    """The state that keepalived is in."""

    state: State
    since: float
    """Seconds of the wall clock; a reload dates it anew."""
    starts: tuple[int, ...]
    """Of each keepalived and its children, in ticks: one that is respawned counts anew."""
    promotions: dict[str, int]
    """How often each instance has become master."""


class Keepalived(NamedTuple):
    """The keepalived of this node, if one is running."""

    program: str
    """The absolute path of the installed program: a process that runs another file is not asked."""
    interrupt: Callable[[], None] = lambda: None
    """Called while an answer is awaited; what it raises ends the waiting."""

    def daemons(self) -> Daemons:
        """The processes that are it, or may be."""
        return daemons(self.program, _NAME)

    def standing(self, followed: Followed) -> Standing:
        """The state that keepalived is in; raises Unknown.

        A dump names no groups, so that for one all instances must agree.
        """
        found = self.daemons()
        if found.none:
            raise NotRunning("keepalived is not running here")
        if not found.installed:
            raise Unknown("; ".join(self.unasked(found).values()))
        answers = self._ask(_parents(found.installed))
        if not answers:
            raise NotRunning("keepalived has just ended")
        said = tuple(each for instances in answers.values() for each in instances)
        if followed.kind == "INSTANCE":
            said = tuple(each for each in said if each.name == followed.name)
        states = {each.state for each in said}
        if len(states) > 1:
            reported = ", ".join(f"{each.name} {_word(each.state)}" for each in said)
            raise Unknown(f"keepalived's instances do not agree: {reported}")
        state = states.pop() if states else None
        if state is None:
            raise Unknown(f"keepalived reports no state of {followed.name} yet")
        return Standing(
            state,
            max(each.since for each in said),
            _starts(found.installed, set(answers)),
            {each.name: each.promotions for each in said},
        )

    def objection(self) -> Verdict | None:
        """Why nothing may be purged here; None if no keepalived runs, or none is master.

        What cannot be asked or does not answer may be master: it objects. Of several groups one is
        enough, since a purge takes the connections of all of them.
        """
        found = self.daemons()
        said: list[Instance] = []
        silent = [*self.unasked(found).values()]
        for parent in _parents(found.installed):
            try:
                for instances in self._ask((parent,)).values():
                    said += instances
                    if not instances:
                        silent.append(f"keepalived (pid {parent}) reports no instance")
            except Unknown as error:
                silent.append(str(error))
        masters = [each.name for each in said if each.state is State.PRIMARY]
        if masters:
            reason = f"keepalived says that this node is master of {', '.join(masters)}"
            return Verdict(Outcome.DEGRADED, reason, _STEP_DOWN)
        silent += [f"it reports no state of {each.name} yet" for each in said if not each.state]
        if silent:
            reason = f"keepalived does not answer ({'; '.join(silent)})"
            return Verdict(Outcome.DEGRADED, reason, _ASK_AGAIN)
        return None

    def refutation(self) -> str | None:
        """Why this node is no primary: it is master of nothing. None if it may be one."""
        try:
            answers = self._ask(_parents(self.daemons().installed))
        except Unknown:
            return None
        states = {each.state for instances in answers.values() for each in instances}
        if not states or states & {None, State.PRIMARY}:
            return None
        return f"keepalived says that this node is {' and '.join(sorted(map(_word, states)))}"

    def unasked(self, found: Daemons) -> dict[str, str]:
        """Why some of these are not asked: a sentence for each program, by what it is about."""
        said = {}
        # A program once, with its lowest pid: its children come and go.
        for each in reversed(found.foreign):
            # A container's program is never to be named: its root could have us execute anything.
            said[each.what] = (
                f"keepalived (pid {each.pid}) runs {each.what} of a container: give that a network "
                "namespace of its own, else nothing is purged while it runs"
                if each.contained
                else f"keepalived (pid {each.pid}) runs {each.what}, which is not the installed "
                f"{self.program}: if it is this node's, name its program with --keepalived"
            )
        for each in reversed(found.unknown):
            said[each.what] = f"keepalived (pid {each.pid}) cannot be identified: {each.what}"
        if found.hidden:
            said[found.hidden] = f"keepalived may be running: {found.hidden}"
        return dict(islice(said.items(), _MOST_UNASKED))

    def _ask(self, parents: tuple[int, ...]) -> dict[int, tuple[Instance, ...]]:
        """What each of these reports of its instances; raises Unknown if one does not answer.

        One that ends meanwhile, such as a `keepalived --config-test`, is left out.
        """
        if not parents:
            return {}
        number = self._signal_number()
        deadline = time.monotonic() + ANSWER_SECONDS
        answers = {pid: self._ask_one(pid, number, deadline) for pid in parents}
        return {pid: said for pid, said in answers.items() if said is not None}

    def _ask_one(self, pid: int, number: int, deadline: float) -> tuple[Instance, ...] | None:
        try:
            process = os.pidfd_open(pid)  # from here on no other process can take its number
        except ProcessLookupError:
            return None
        where = ""
        try:
            if not self._is_ready(pid, number, deadline):
                return None
            path = _dump_directory(pid)
            where = f"{path}/{_DUMP}: "
            path = f"/proc/{pid}/root{path}"  # it may see other mounts than we do
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self._await_dump(pid, process, number, directory, deadline)
            finally:
                os.close(directory)
        except OSError as error:
            if _has_ended(process):
                return None
            why = f"{where}{error.strerror}"
            raise Unknown(f"keepalived (pid {pid}) cannot be asked: {why}") from error
        finally:
            os.close(process)

    def _is_ready(self, pid: int, number: int, deadline: float) -> bool:
        """Wait until it takes the signal; False where it ends, as one that tests its file does."""
        program = Program.at(self.program, _NAME)
        while identify(pid, program) is Identity.INSTALLED:
            if takes(pid, number):
                return True
            self._poll(deadline, f"keepalived (pid {pid}) does not take the signal yet")
        return False

    def _poll(self, deadline: float, why: str) -> None:
        """Wait a little; raises Unknown past the deadline."""
        self.interrupt()
        if time.monotonic() > deadline:
            raise Unknown(why)
        time.sleep(_POLL_SECONDS)

    def _signal_number(self) -> int:
        """The number that the installed program gives; no program of a process's is executed."""
        try:
            file = os.stat(self.program)
        except OSError as error:
            raise Unknown(
                f"{self.program}: {error.strerror}; name the installed program with --keepalived"
            ) from error
        key = file.st_dev, file.st_ino, file.st_ctime_ns
        if key not in _numbers:
            _numbers[key] = self._ask_number()
        return _numbers[key]

    def _ask_number(self) -> int:
        try:
            finished = run(
                self.program, "--signum=JSON",
                seconds=_NUMBER_SECONDS,
                working=self._no_progress,
            )  # fmt: skip
        except NotInstalled as error:
            raise Unknown(str(error)) from error
        if finished.code is None:
            raise Unknown(f"{self.program} --signum=JSON does not answer")
        text = finished.output.strip()
        if finished.code != 0 or not text.isdigit():
            raise Unknown(f"{self.program} has no JSON dump")
        return int(text)

    def _no_progress(self) -> bool:
        self.interrupt()
        return False

    def _await_dump(
        self, pid: int, process: int, number: int, directory: int, deadline: float
    ) -> tuple[Instance, ...] | None:
        """Signal the process; its dump, once it is whole: it is not written atomically.

        Where others may write into the directory, they may have put anything there. Nothing is
        removed then, and only what was written after the signal counts. None if it ends meanwhile.
        """
        import json  # only where a purge or a new follower asks

        earlier = _Earlier.in_directory(directory)
        if earlier is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_DUMP, dir_fd=directory)
        signal.pidfd_send_signal(process, number)
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError):
                text = _read_dump(directory, earlier).decode(errors="surrogateescape")
                return read_dump(json.loads(text))
            if _has_ended(process):
                return None
            self._poll(deadline, f"keepalived (pid {pid}) wrote no dump in {ANSWER_SECONDS} s")


def _has_ended(process: int) -> bool:
    """Whether a process has, by its descriptor (pidfd_open(2)): a zombie has ended too."""
    return bool(select.select([process], [], [], 0)[0])


def writes(found: Daemons, fifo: int) -> bool | None:
    """Whether one of these has that FIFO open, by our descriptor; None where that is unknown."""
    if not found.installed or found.unknown:
        return None
    ours = os.fstat(fifo)
    return any(os.path.samestat(each, ours) for pid in found.installed for each in _opened(pid))


def _opened(pid: int) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.stat(f"/proc/{pid}/fd/{name}")


def _word(state: State | None) -> str:
    return state.value if state else "in none"


def _parents(pids: tuple[int, ...]) -> tuple[int, ...]:
    """The pids of those that are no children of another one."""
    found = [process for pid in pids if (process := look(pid)) is not None]
    known = {process.issued.pid for process in found}
    return tuple(sorted(each.issued.pid for each in found if each.parent not in known))


def _starts(pids: tuple[int, ...], parents: set[int]) -> tuple[int, ...]:
    """When each of these parents and its children were started, in ticks.

    Grandchildren are about to become a script.
    """
    found = [process for pid in pids if (process := look(pid)) is not None]
    ours = sorted(each.issued for each in found if {each.issued.pid, each.parent} & parents)
    return tuple(issued.ticks for issued in ours)


def _dump_directory(pid: int) -> str:
    """Where it puts its dump, among the files that it sees: keepalived honours TMPDIR."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        variables = dict(each.partition(b"=")[::2] for each in file.read().split(b"\0"))
    directory = os.fsdecode(variables.get(b"TMPDIR", b""))
    if not directory.startswith("/"):
        directory = "/tmp"  # noqa: S108  # keepalived's choice
    return os.path.abspath(directory)


def _is_roots_alone(found: os.stat_result) -> bool:
    """Whether no other user could have written a file, or into a directory."""
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class _Earlier(NamedTuple):
    """What no answer is, in a directory where others may write: what was there before."""

    asked: int
    """When the question was asked, in ns of the clock by which file systems date their files."""
    file: os.stat_result | None
    """The file that was there then. Its date may be as late: that clock stands for some ms."""

    @classmethod
    def in_directory(cls, directory: int) -> "_Earlier | None":
        """Look at a directory right before the question; None where root alone may write."""
        if _is_roots_alone(os.fstat(directory)):
            return None
        file = None
        with contextlib.suppress(FileNotFoundError):
            file = os.stat(_DUMP, dir_fd=directory, follow_symlinks=False)
        return cls(time.clock_gettime_ns(_CLOCK_REALTIME_COARSE), file)

    def excludes(self, found: os.stat_result) -> bool:
        """Whether a file was there before, or was written before the clock was set back."""
        if not self.asked <= found.st_mtime_ns <= time.time_ns():
            return True
        if self.file is None or not os.path.samestat(found, self.file):
            return False
        return found.st_mtime_ns == self.file.st_mtime_ns


def _read_dump(directory: int, earlier: _Earlier | None) -> bytes:
    """Read the dump: root's own plain file, no link, and none that was there ``earlier``."""
    found = os.stat(_DUMP, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or not _is_roots_alone(found):
        raise PermissionError(0, f"no plain file of root's, but of uid {found.st_uid}: remove it")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(_DUMP, flags, dir_fd=directory), "rb") as file:
        if not os.path.samestat(os.fstat(file.fileno()), found):
            raise FileNotFoundError  # it was replaced meanwhile
        if earlier is not None and earlier.excludes(found):
            raise FileNotFoundError
        return file.read(_LONGEST_DUMP)
