"""Asking keepalived which VRRP state it is in, without disturbing it.

The number of the signal that it is asked by comes from the installed program.
"""

import os
import time
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from primary_backup.keepalived.dump import Unknown, ask
from primary_backup.keepalived.notify import Followed, Instance
from primary_backup.plan import State
from primary_backup.system.identity import Daemons, daemons, is_installed
from primary_backup.system.proc import find_process, takes
from primary_backup.system.run import NotInstalled, run

ANSWER_SECONDS = 0.5
"""For one answer, which takes keepalived 1.3 ms, at most 17 (measured); on a busy machine longer if
it is no real-time process."""
_NUMBER_SECONDS = 1.0
"""A busy machine may take that long to start a program."""
_POLL_SECONDS = 0.002
"""About as long as an answer takes."""
_NAME = "keepalived"
_MOST_UNASKED = 3
"""So many programs that are not asked are reported: a container may start any number."""
_numbers: dict[tuple[int, int, int], int] = {}
"""The signal's number, by device, inode and change time of the program: it is asked once."""


class NotRunning(Unknown):
    """There is no keepalived here."""


class VrrpState(NamedTuple):
    """The state that keepalived is in."""

    state: State
    since: float
    """Seconds of the wall clock; a reload sets it to its own time."""
    starts: tuple[int, ...]
    """When each keepalived and its children were started, in ticks: a respawned one differs."""
    promotions: dict[str, int]
    """How often each instance has become master."""
    addresses: tuple[str, ...] = ()
    """Those that it has as a master."""
    down_seconds: float = 0.0
    """How long no advert comes before this node takes over: the longest of its instances."""


class Report(NamedTuple):
    """What every keepalived of this node reports; empty where none runs."""

    instances: tuple[Instance, ...]
    unknown: tuple[str, ...]
    """Why something is not known: a sentence each."""


class Keepalived(NamedTuple):
    """The keepalived of this node, if one is running."""

    program: str
    """The absolute path of the installed program: a process that runs another file is not asked."""
    interrupt: Callable[[], None] = lambda: None
    """Called while an answer is awaited; what it raises ends the waiting."""

    def daemons(self) -> Daemons:
        """The processes that are it, or may be."""
        return daemons(self.program, _NAME)

    def vrrp_state(self, followed: Followed) -> VrrpState:
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
        instances = tuple(each for answer in answers.values() for each in answer)
        if followed.kind == "INSTANCE":
            instances = tuple(each for each in instances if each.name == followed.name)
        states = {each.state for each in instances}
        if len(states) > 1:
            reported = ", ".join(f"{each.name} {_name(each.state)}" for each in instances)
            raise Unknown(f"keepalived's instances do not agree: {reported}")
        state = states.pop() if states else None
        if state is None:
            raise Unknown(f"keepalived reports no state of {followed.name} yet")
        return VrrpState(
            state,
            max(each.since for each in instances),
            _starts(found.installed, set(answers)),
            {each.name: each.promotions for each in instances},
            tuple(address for each in instances for address in each.addresses),
            max(each.down_seconds for each in instances),
        )

    def report(self) -> Report:
        """What every keepalived of this node reports, and what is not known of them."""
        found = self.daemons()
        instances: list[Instance] = []
        unknown = [*self.unasked(found).values()]
        for parent in _parents(found.installed):
            try:
                for each in self._ask((parent,)).values():
                    instances += each
                    if not each:
                        unknown.append(f"keepalived (pid {parent}) reports no instance")
            except Unknown as error:
                unknown.append(str(error))
        unknown += [
            f"it reports no state of {each.name} yet" for each in instances if not each.state
        ]
        return Report(tuple(instances), tuple(unknown))

    def refutation(self) -> str | None:
        """Why this node is no primary: no instance is master. None if one may be."""
        try:
            answers = self._ask(_parents(self.daemons().installed))
        except Unknown:
            return None
        states = {each.state for instances in answers.values() for each in instances}
        if not states or states & {None, State.PRIMARY}:
            return None
        return f"keepalived reports that this node is {' and '.join(sorted(map(_name, states)))}"

    def unasked(self, found: Daemons) -> dict[str, str]:
        """Why some of these are not asked: a sentence for each program."""
        reasons = {}
        # Each program once, with its lowest pid: its children come and go.
        for each in reversed(found.foreign):
            # Never advise to name a container's program: its root could have us execute anything.
            reasons[each.what] = (
                f"keepalived (pid {each.pid}) runs {each.what} of a container: give that a network "
                "namespace of its own, else nothing is purged while it runs"
                if each.contained
                else f"keepalived (pid {each.pid}) runs {each.what}, which is not the installed "
                f"{self.program}: if it is this node's, name its program with --keepalived"
            )
        for each in reversed(found.unknown):
            reasons[each.what] = f"keepalived (pid {each.pid}) cannot be identified: {each.what}"
        if found.hidden:
            reasons[found.hidden] = f"keepalived may be running: {found.hidden}"
        return dict(islice(reasons.items(), _MOST_UNASKED))

    def _ask(self, parents: tuple[int, ...]) -> dict[int, tuple[Instance, ...]]:
        """Instances of every keepalived that answers; raises Unknown if one does not.

        One that ends meanwhile, such as a `keepalived --config-test`, is left out.
        """
        if not parents:
            return {}
        number = self._signal_number()
        deadline = time.monotonic() + ANSWER_SECONDS
        answers = {pid: self._ask_one(pid, number, deadline) for pid in parents}
        return {pid: answer for pid, answer in answers.items() if answer is not None}

    def _ask_one(self, pid: int, number: int, deadline: float) -> tuple[Instance, ...] | None:
        def wait(what: str) -> None:
            self._poll(deadline, f"keepalived (pid {pid}) {what} in {ANSWER_SECONDS} s")

        return ask(pid, number, lambda: self._is_ready(pid, number, deadline), wait)

    def _is_ready(self, pid: int, number: int, deadline: float) -> bool:
        """Wait until it takes the signal; False where it ends, as a `--config-test` does."""
        while is_installed(pid, self.program, _NAME):
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
        """The number that the installed program prints; no process's own program is executed."""
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


def _name(state: State | None) -> str:
    return state.value if state else "in none"


def _parents(pids: tuple[int, ...]) -> tuple[int, ...]:
    """The pids of those that are no children of another one."""
    found = [process for pid in pids if (process := find_process(pid)) is not None]
    known = {process.issued.pid for process in found}
    return tuple(sorted(each.issued.pid for each in found if each.parent not in known))


def _starts(pids: tuple[int, ...], parents: set[int]) -> tuple[int, ...]:
    """When each of these parents and its children were started, in ticks.

    Grandchildren are about to become a script.
    """
    found = [process for pid in pids if (process := find_process(pid)) is not None]
    ours = sorted(each.issued for each in found if {each.issued.pid, each.parent} & parents)
    return tuple(issued.ticks for issued in ours)
